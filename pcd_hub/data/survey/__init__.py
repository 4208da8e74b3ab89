"""Survey of unlabelled images before training: sizes, broken files, copies."""
