import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import pcd_hub
from pcd_hub import cli
from pcd_hub.models.teacher_sources import catalogue
from pcd_hub.models.teacher_sources.catalogue import TEACHERS

PAGE = Path(__file__).parents[3] / "recipes" / "teachers.md"
TABLE = "<!-- table: python -m pytest tests/models/teacher_sources/test_catalogue.py"
ids = [teacher.name for teacher in TEACHERS]


def counted(architecture: str, **arguments) -> tuple[float, float, tuple[int, ...]]:
    """Return millions of parameters, GMAC and the shape of the features at 224 px."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        model = timm.create_model(architecture, num_classes=0, **arguments).eval()
        shape = model.forward_features(torch.zeros(1, 3, 224, 224)).shape
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return parameters / 1e6, counter.get_total_flops() / 2e9, tuple(shape)


@pytest.mark.parametrize("teacher", TEACHERS, ids=ids)
def test_the_facts_are_those_of_timm(teacher):
    cfg = timm.get_pretrained_cfg(teacher.name).to_dict()
    size = {"img_size": 224} if cfg.get("fixed_input_size") else {}
    parameters, gmac, shape = counted(teacher.name.split(".")[0], **size)
    assert teacher.is_in_timm, "the lowest supported timm knows them all"
    assert teacher.parameters == pytest.approx(parameters, abs=0.006)
    assert teacher.gmac == pytest.approx(gmac, abs=0.0006)
    assert teacher.license == cfg["license"]
    if teacher.kind == "cnn":
        assert shape[1:] == (teacher.channels, teacher.grid, teacher.grid)
    else:
        prefix = shape[1] - teacher.grid**2
        assert shape[2] == teacher.channels
        assert 0 <= prefix <= 5


def test_the_cost_is_that_of_a_resnet18_step():
    _, gmac, _ = counted("resnet18")
    for teacher in TEACHERS:
        assert teacher.cost == pytest.approx(teacher.gmac / (3 * gmac), rel=1e-3)


def test_names_are_listed_once():
    assert len({teacher.name for teacher in TEACHERS}) == len(TEACHERS)
    assert catalogue.find(TEACHERS[3].source) is TEACHERS[3]
    assert catalogue.find("timm:resnet18.a1_in1k") is None


def test_the_command_prints_every_teacher(capsys, monkeypatch):
    monkeypatch.setattr(timm, "is_model_pretrained", lambda name: name != TEACHERS[0].name)
    cli.main(["teachers"])
    lines = capsys.readouterr().out.splitlines()
    for teacher, line in zip(TEACHERS, lines[1:], strict=False):
        assert line.split()[0] == teacher.name
        assert teacher.advice in line
        assert (f"(not in timm {timm.__version__})" in line) == (teacher is TEACHERS[0])
    cli.main(["teachers", "--json"])
    first, *_ = json.loads(capsys.readouterr().out)
    assert first["source"] == TEACHERS[0].source
    assert first["cost"] == 1.14
    assert first["smallest_image_size"] == 98
    assert first["is_in_timm"] is False


def test_the_command_needs_no_network():
    """A socket that is opened raises."""
    code = (
        "import socket\n"
        "def refuse(*_, **__): raise AssertionError('network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from pcd_hub import cli\n"
        "cli.main(['teachers'])\n"
    )
    root = Path(pcd_hub.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert TEACHERS[-1].name in done.stdout


def test_the_page_has_the_same_table(request):
    before, marker, rest = PAGE.read_text().partition(TABLE)
    first, _, after = rest.partition("\n")
    after = after.lstrip("\n")
    while after.startswith("|"):
        after = after.partition("\n")[2]
    page = f"{before}{marker}{first}\n\n{catalogue.as_markdown()}\n{after}"
    if request.config.getoption("--update-golden"):
        PAGE.write_text(page)
    assert PAGE.read_text() == page, "write it again with --update-golden"
