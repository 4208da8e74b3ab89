"""Command-line evaluations of frozen backbones; the measuring itself is ``pcd_hub.evaluate``."""
