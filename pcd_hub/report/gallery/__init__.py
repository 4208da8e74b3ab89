"""A page with all known weights, to compare and choose from."""
