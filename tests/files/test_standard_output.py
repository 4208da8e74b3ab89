"""Programs whose output is not read, or not read to its end."""

import os
import subprocess
import sys

import pytest

from pcd_hub.files.standard_output import CLOSED_PIPE


def unread(body, *, unbuffered):
    """Run Python code whose standard output is a pipe that nobody reads any more."""
    code = f"""
import sys
sys.stdin.read()
from pcd_hub.files.standard_output import exit_if_closed
with exit_if_closed():
    {body}
"""
    options = ["-u"] if unbuffered else []
    process = subprocess.Popen(
        [sys.executable, *options, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
    )
    assert process.stdout
    process.stdout.close()
    process.stdout = None
    _, errors = process.communicate("")
    return process.returncode, errors


@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize(
    "body", ["print('x')", "print('x' * 1_000_000)", "print('x'); sys.exit(3)"]
)
def test_a_closed_pipe_is_an_exit_code_without_a_traceback(body, unbuffered):
    assert unread(body, unbuffered=unbuffered) == (CLOSED_PIPE, "")


def test_another_broken_pipe_is_an_error():
    code = "from pcd_hub.files.standard_output import exit_if_closed\n"
    code += "with exit_if_closed():\n    raise BrokenPipeError('the connection')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "BrokenPipeError: the connection" in done.stderr
