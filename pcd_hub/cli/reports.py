"""The command about finished runs: report."""

import argparse

from pcd_hub.report.page.write import report_runs


def _report(options: argparse.Namespace) -> None:
    print(report_runs(options.runs, options.output))


RUN = {"report": _report}
"""The functions that run the commands, by name."""
