"""``python -m pcd_hub``: the same as ``pcd-hub``."""

from pcd_hub.cli import main

main()
