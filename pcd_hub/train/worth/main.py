"""``pcd-hub worth DATA --models START OTHER ...``: compare starts on the user's labelled data."""

import logging
import os
import shutil
from collections import Counter
from typing import Any

from pcd_hub.errors import ConfigError, first_line
from pcd_hub.train.configs.command_line import run_main
from pcd_hub.train.lab.jobs import check_options, read_state, run_job
from pcd_hub.train.lab.main import locked
from pcd_hub.train.launch import quiet_logs
from pcd_hub.train.run_folder.preflight import check_run_folder
from pcd_hub.train.signals import StoppedRun
from pcd_hub.train.worth.configs.options import parse_worth
from pcd_hub.train.worth.distilled import check_not_distilled_on
from pcd_hub.train.worth.plan import Comparison, open_comparison, write_plan
from pcd_hub.train.worth.table import as_plain, collect, save
from pcd_hub.train.worth.timing import estimate_seconds, in_words

log = logging.getLogger("pcd_hub")


def main(arguments: list[str]) -> dict[str, Any]:
    """Run the fine-tunings that are missing, print the table and the verdict; return them."""
    options, passed_on = parse_worth(arguments)
    quiet_logs()
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError(
            f"WORLD_SIZE {os.environ['WORLD_SIZE']}: the comparison runs in one process; start it "
            "without a launcher"
        )
    comparison = open_comparison(options, passed_on)
    folder = comparison.folder
    check_run_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            return run_all(comparison)
    except OSError as error:
        raise ConfigError(
            f"cannot write to {folder} ({error.strerror or first_line(error)}); free some space, "
            "then start the same command again"
        ) from error


def run_all(comparison: Comparison) -> dict[str, Any]:
    """Check, estimate and run the fine-tunings, and save the table after each.

    Raises:
        ConfigError: If the folder has runs with other settings, images or weights.
        DataError: If test images are among the images of a distillation.
        StoppedRun: After a signal; the last step is saved.
    """
    jobs, options = list(comparison.jobs()), comparison.options
    for job in jobs:
        check_options(job)
    write_plan(comparison)
    checks = check_not_distilled_on(
        comparison.test, comparison.models, options.distilled_on, comparison.folder
    )
    print("\n".join(checks))
    _print_estimate(comparison)
    for number, job in enumerate(jobs, start=1):
        log.info("fine-tuning %d of %d: %s", number, len(jobs), job.folder)
        try:
            state = run_job(job, retry_failed=options.retry_failed)
        except StoppedRun as stopped:
            stopped.args = (stopped.message("the same command"),)
            raise
        if state == "done":  # the scores are saved; it is never resumed
            shutil.rmtree(job.folder / "checkpoints", ignore_errors=True)
        save(collect(comparison, checks))
    result = collect(comparison, checks)
    print(f"\n{save(result)}\n\n{comparison.folder / 'worth.md'}")
    return as_plain(result)


def _print_estimate(comparison: Comparison) -> None:
    left = Counter(
        label
        for label in comparison.models
        for seed in comparison.seeds
        for share in comparison.options.shares
        if _is_left(comparison, label, share, seed)
    )
    if left.total():
        words = in_words(estimate_seconds(comparison, dict(left)))
        print(f"{left.total()} fine-tunings of {comparison.steps} steps: {words} on this machine")


def _is_left(comparison: Comparison, label: str, share: float, seed: int) -> bool:
    state = read_state(comparison.job(label, share, seed).folder).get("state")
    return state != "done" and (state != "failed" or comparison.options.retry_failed)


if __name__ == "__main__":
    run_main(main)
