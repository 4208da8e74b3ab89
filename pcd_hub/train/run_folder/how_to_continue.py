"""What continues a run, for messages."""

import json
import shlex
from pathlib import Path


def how_to_continue(folder: Path) -> str:
    """Return the command that continues the run in ``folder``, or how to get it from the first."""
    quoted = shlex.quote(str(folder))
    try:
        is_distillation = "student" in json.loads((folder / "config.json").read_text())
    except (OSError, ValueError, TypeError):
        is_distillation = False
    if is_distillation:
        return f"pcd-hub distill --resume {quoted}"
    return f"the same command and --run.resume --run.output-dir {quoted}"
