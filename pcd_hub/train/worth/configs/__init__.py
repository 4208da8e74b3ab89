"""Configuration of ``pcd-hub worth``."""
