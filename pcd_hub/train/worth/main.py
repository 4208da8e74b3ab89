"""``pcd-hub worth DATA --models START OTHER ...``: compare starts on the user's labelled data."""

import contextlib
import io
import logging
import shutil
from collections import Counter
from typing import Any

from pcd_hub.errors import DataError
from pcd_hub.train.configs.command_line import run_main
from pcd_hub.train.lab.jobs import Job, alone_in, check_options, read_state, run_job
from pcd_hub.train.launch import quiet_logs
from pcd_hub.train.worth.configs.options import parse_worth
from pcd_hub.train.worth.distilled import check_not_distilled_on
from pcd_hub.train.worth.plan import Comparison, open_comparison, write_plan
from pcd_hub.train.worth.table import Result, as_plain, collect, save
from pcd_hub.train.worth.timing import estimate_seconds, in_words

log = logging.getLogger("pcd_hub")


def main(arguments: list[str]) -> dict[str, Any]:
    """Run the fine-tunings that are missing, print the table and the verdict; return them."""
    options, passed_on = parse_worth(arguments)
    quiet_logs()
    comparison = open_comparison(options, passed_on)
    with alone_in(comparison.folder):
        return run_all(comparison)


def run_all(comparison: Comparison) -> dict[str, Any]:
    """Check, estimate and run the fine-tunings, and save the table after each.

    Raises:
        ConfigError: If the folder has runs with other settings, images or weights.
        DataError: If test images are among the images of a distillation, or all fine-tunings fail.
        StoppedRun: After a signal; the last step is saved.
    """
    runs, options = list(comparison.runs()), comparison.options
    for run in runs:
        check_options(comparison.job(*run))
    write_plan(comparison)
    checks = check_not_distilled_on(
        comparison.test, comparison.models, options.distilled_on, comparison.folder
    )
    print("\n".join(checks))
    _print_estimate(comparison)
    for number, run in enumerate(runs, start=1):
        log.info("fine-tuning %d of %d: %s", number, len(runs), _in_words(*run))
        _run(comparison.job(*run), retry_failed=options.retry_failed)
        result = collect(comparison, checks)
        save(result)
        _print_scores(result, *run)
    result = collect(comparison, checks)
    print(f"\n{save(result)}\n\nall metrics, rules and protocols: {comparison.folder / 'worth.md'}")
    states = [read_state(comparison.job(*run).folder) for run in runs]
    if all(state.get("state") == "failed" for state in states):
        raise DataError(
            f"all {len(runs)} fine-tunings failed, the first of them: {states[0].get('reason')}"
        )
    return as_plain(result)


def _run(job: Job, *, retry_failed: bool) -> None:
    with contextlib.redirect_stdout(io.StringIO()):  # a table of this run alone
        state = run_job(job, retry_failed=retry_failed)
    if state == "done":  # the scores are saved; it is never resumed
        shutil.rmtree(job.folder / "checkpoints", ignore_errors=True)


def _in_words(label: str, share: float, seed: int) -> str:
    return f"{label}, {share:g} % of the labels, seed {seed}"


def _print_scores(result: Result, label: str, share: float, seed: int) -> None:
    scores = result.row(share, label).values.get(seed, {})
    listed = ", ".join(f"{metric} {score:.2f}" for metric, score in scores.items())
    print(f"{_in_words(label, share, seed)}: {listed or 'failed'}")


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
