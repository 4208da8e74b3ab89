"""The commands that write pages: report, gallery."""

import argparse

from pcd_hub.cli.output import print_json
from pcd_hub.report.gallery.write import write_gallery
from pcd_hub.report.page.write import report_runs


def _report(options: argparse.Namespace) -> None:
    page = report_runs(options.runs, options.output)
    if options.json:
        print_json({"page": page})
    else:
        print(page)


def _gallery(options: argparse.Namespace) -> None:
    page, count = write_gallery(options.folder)
    if options.json:
        print_json({"page": page, "weights": count})
    else:
        print(f"{count} weights: {page}")


RUN = {"report": _report, "gallery": _gallery}
"""The functions that run the commands, by name."""
