"""Distillation of a person's own images: derived settings, length in hours, continued runs."""
