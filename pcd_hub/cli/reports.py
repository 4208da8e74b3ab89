"""The commands that write pages: report, gallery."""

import argparse

from pcd_hub.report.gallery.write import write_gallery
from pcd_hub.report.page.write import report_runs


def _report(options: argparse.Namespace) -> None:
    print(report_runs(options.runs, options.output))


def _gallery(options: argparse.Namespace) -> None:
    page, count = write_gallery(options.folder)
    print(f"{count} weights: {page}")


RUN = {"report": _report, "gallery": _gallery}
"""The functions that run the commands, by name."""
