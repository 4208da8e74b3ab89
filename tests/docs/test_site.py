"""The site's pages; ``mkdocs build --strict`` of the checks tests links and anchors."""

import re

import pcd_hub
from tests.docs.blocks import ROOT


def test_the_reference_has_every_public_name_once():
    text = (ROOT / "docs" / "reference.md").read_text()
    assert sorted(re.findall(r"^::: pcd_hub\.(\w+)$", text, re.MULTILINE)) == sorted(
        pcd_hub.__all__
    )


def test_contributing_and_ci_run_the_same_checks():
    checks = next(
        line
        for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines()
        if line.startswith("ruff format")
    )
    ci = (ROOT / ".ci" / "run").read_text().split("\ninstall\n")[1].split("\n\n")[0]
    assert [words.split()[:2] for words in checks.split(" && ")] == [
        re.sub(r"^[A-Z_\d]+=\S+ ", "", line).split(" --")[0].split()[:2] for line in ci.splitlines()
    ]


def test_the_readme_is_short_and_pictures_are_small():
    assert len((ROOT / "README.md").read_text().splitlines()) < 200
    pictures = [*(ROOT / "docs").rglob("*.png"), *(ROOT / "docs").rglob("*.jpg")]
    assert all(path.stat().st_size <= 150_000 for path in pictures)
