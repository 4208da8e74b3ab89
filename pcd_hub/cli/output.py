"""Print the results of commands."""

import json


def print_json(value: object) -> None:
    """Print a result of ``--json``."""
    print(json.dumps(value, indent=2, default=str))
