"""The command ``pcd-hub``: ``main`` runs it.

``commands`` lists the commands with their options, and imports no torch; the modules that run them
are imported when a command needs them.
"""

from pcd_hub.cli.program import main

__all__ = ["main"]
