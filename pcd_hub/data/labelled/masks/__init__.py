"""Masks of classes: files of masks, and masks drawn from annotated objects."""
