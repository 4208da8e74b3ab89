"""Configurations of the training recipes, and how command lines and files override them.

One file for each recipe, ``fields.py`` for types and bounds, ``command_line.py`` for options and
``files.py`` for ``--config FILE``. Named configurations are defined in Python tables;
``RECIPE NAME --print-config`` writes one as YAML. ``recipes/configs/`` has further ones as files.
"""

import os

if os.environ.get("NO_COLOR"):  # read by tyro when it is imported; up to 1.0 it obeyed NO_COLOR
    os.environ.setdefault("PYTHON_TYRO_ANSI_CODES", "False")
