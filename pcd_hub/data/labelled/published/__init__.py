"""Small published data sets: their archives, and the layouts that the readers know.

Reading order: sets.py (the table) -> download.py -> layouts.py.
"""
