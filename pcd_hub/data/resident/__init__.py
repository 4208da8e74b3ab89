"""Decoded images in the memory of a device, and their augmented views rendered in batches."""
