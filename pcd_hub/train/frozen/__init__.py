"""Command-line evaluations of frozen backbones, built on ``pcd_hub.evaluate``."""
