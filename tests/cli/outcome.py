"""Run a command in this process."""

from typing import NamedTuple

import pytest

from pcd_hub import cli


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


def outcome(capsys: pytest.CaptureFixture[str], *arguments: str) -> Outcome:
    """Return exit code, standard output and standard error, as a shell would see them."""
    code: int | str | None = 0
    try:
        cli.main(arguments)
    except SystemExit as ended:
        code = ended.code
    out, err = capsys.readouterr()
    if isinstance(code, str):  # Python prints it and exits with 1
        return Outcome(1, out, f"{err}{code}\n")
    return Outcome(code or 0, out, err)
