"""Image sources, decoding, augmented views and data loading."""
