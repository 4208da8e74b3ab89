"""The same commit gives the same wheel. Builds a small package, not this one."""

import importlib.util
import subprocess
from pathlib import Path

import pytest

import build_wheel
from pcd_hub.errors import PCDHubError

needs_build = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("build", "hatchling"))),
    reason="build or hatchling is missing",
)
PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "small"
version = "1"
requires-python = ">=3.11"
"""


@pytest.fixture
def repository(tmp_path):
    root = tmp_path / "repository"
    (root / "small").mkdir(parents=True)
    (root / "small" / "__init__.py").touch()
    (root / "pyproject.toml").write_text(PYPROJECT)
    ann = ["-c", "user.name=ann", "-c", "user.email=ann@localhost"]
    for words in (["init", "-q"], ["add", "."], [*ann, "commit", "-qm", "one"]):
        subprocess.run(["git", "-C", str(root), *words], check=True)
    return root


@needs_build
def test_two_builds_of_a_commit_are_equal(repository, tmp_path):
    wheel, digest = build_wheel.build_twice("HEAD", tmp_path / "dist", root=repository)
    assert wheel.name == "small-1-py3-none-any.whl"
    again, same = build_wheel.build_twice("HEAD", tmp_path / "other", root=repository)
    assert same == digest
    assert again.read_bytes() == wheel.read_bytes()


def test_wheels_that_differ_are_an_error(tmp_path, monkeypatch):
    def build(commit: str, folder: Path, **_: object) -> Path:
        wheel = tmp_path / f"{folder.name}.whl"
        wheel.write_text(folder.name)
        return wheel

    monkeypatch.setattr(build_wheel, "build", build)
    with pytest.raises(PCDHubError, match="two builds of HEAD differ"):
        build_wheel.build_twice("HEAD", tmp_path / "dist")
    assert not (tmp_path / "dist").exists()


def test_an_unknown_commit_is_one_line(repository, tmp_path):
    with pytest.raises(PCDHubError, match="git -C .* failed: fatal: not a valid object name"):
        build_wheel.build_twice("nothing", tmp_path / "dist", root=repository)
