"""Figures of features, predictions and training curves."""
