"""The script of ``pcd-hub completion`` in a real bash."""

import shutil
import subprocess
import sys

import pytest

from pcd_hub import cli
from tests.cli.outcome import outcome

TRY = """
words=(pcd-hub {words})
COMP_WORDS=("${{words[@]}}"); COMP_CWORD=$((${{#words[@]}} - 1))
_shtab_pcd_hub pcd-hub "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD - 1]}}"
echo "${{COMPREPLY[*]}}"
"""


@pytest.fixture
def script(capsys):
    pytest.importorskip("shtab", reason="needs the extra `completion`")
    cli.main(["completion", "bash"])
    return capsys.readouterr().out


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("di", "distill"),
        ("distill --optim.lr", "--optim.lr-per-256"),
        ("distill photos --h", "--help --hours"),
        ("compare --in", "--into"),
        ("show res", "resnet18.pcd resnet18.pcd_photos"),
        ("verify resnet18.pcd resnet18.pcd_", "resnet18.pcd_photos"),
        ("publish --dry", "--dry-run"),
        ("completion ''", "bash zsh"),
    ],
)
def test_commands_options_and_weights_are_completed(script, words, completed, tmp_path):
    for name in ("resnet18.pcd", "resnet18.pcd_photos", ".versions"):
        (tmp_path / "store" / name).mkdir(parents=True)
    done = subprocess.run(
        ["bash", "-c", f"{script}\n{TRY.format(words=words)}"],
        capture_output=True,
        text=True,
        check=True,
        env={"PCD_HUB_HOME": str(tmp_path / "store")},
    )
    assert done.stdout.strip() == completed


def test_without_shtab_the_remedy_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    code, _, err = outcome(capsys, "completion", "zsh")
    assert code == 1
    assert err.endswith('; pip install ".[completion]" in the clone of pcd_hub\n')
