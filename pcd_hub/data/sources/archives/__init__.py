"""Images inside zip files and tar shards, read in place."""
