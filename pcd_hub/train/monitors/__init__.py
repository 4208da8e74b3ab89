"""Monitors of a training run: loss, collapse, progress, broken images, trackers."""
