"""Weights that other libraries trained: read from their checkpoints, with an honest record."""
