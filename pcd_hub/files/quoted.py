"""Paths in generated code."""

import json
from pathlib import PurePath


def in_quotes(path: PurePath) -> str:
    """Return a path as it is written between the double quotes of Python, YAML and JSON."""
    return json.dumps(path.as_posix(), ensure_ascii=False)[1:-1]
