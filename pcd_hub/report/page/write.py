"""Write the reports of runs: ``report.html`` and ``report.md``, or a page with several runs."""

from collections.abc import Sequence
from pathlib import Path

from pcd_hub.errors import ConfigError
from pcd_hub.files.write import atomic_write
from pcd_hub.report.page.content import read_report
from pcd_hub.report.page.render import render_comparison, render_page
from pcd_hub.report.page.templates import GENERATOR
from pcd_hub.report.run_report import render_report

PAGE, REPORT = "report.html", "report.md"
COMPARISON = "comparison.html"

_HEAD_BYTES = 2000
"""Bytes of a page that name its generator."""


def write_report(folder: Path) -> Path:
    """Write ``report.html`` and ``report.md`` into the folder of a finished run.

    Returns:
        The HTML page.

    Raises:
        ConfigError: If the folder holds no finished distillation.
        OSError: If a file cannot be written.
    """
    report = read_report(folder)
    atomic_write(folder / REPORT, render_report(report))
    page = folder / PAGE
    atomic_write(page, render_page(report))
    return page


def report_runs(runs: Sequence[Path], output: Path | None = None) -> Path:
    """Render the report of a finished run again, or that of several runs side by side.

    Args:
        runs: Folders of finished runs.
        output: The page to write; default: ``report.html`` in the folder of a single run, where
            ``report.md`` is written as well, or ``comparison.html`` in the working folder.

    Returns:
        The page.

    Raises:
        ConfigError: If a folder holds no finished distillation, or the page cannot be written.
    """
    alone = len(runs) == 1
    page = output or (runs[0] / PAGE if alone else Path(COMPARISON))
    try:
        if alone and output is None:
            return write_report(runs[0])
        reports = [read_report(run) for run in runs]
        text = render_page(reports[0]) if alone else render_comparison(reports)
        check_replaceable(page, remedy="name another file with --output")
        atomic_write(page, text)
    except OSError as error:
        raise ConfigError(
            f"cannot write {page} ({error.strerror or error}); name another file with --output"
        ) from error
    return page


def check_replaceable(page: Path, *, remedy: str) -> None:
    """Check that a page replaces no file but an earlier page of this package.

    Raises:
        ConfigError: If it would.
    """
    if not page.exists():
        return
    marker = f'<meta name="generator" content="{GENERATOR}">'.encode()
    is_page = page.is_file()
    if is_page:
        with page.open("rb") as file:
            is_page = marker in file.read(_HEAD_BYTES)
    if not is_page:
        raise ConfigError(f"{page} exists and is not a page of pcd-hub; {remedy}")
