"""Frozen features in, numbers out."""
