"""Trained weights: record, model card, export, local store, verified loading."""
