"""Configurations of every training recipe, the command line and the files that change them.

One file for each recipe, ``fields.py`` for types and bounds, ``command_line.py`` for options and
``files.py`` for ``--config FILE``. A named configuration is an entry of a table in Python, and
nowhere else; ``RECIPE NAME --print-config`` writes it as YAML.
"""
