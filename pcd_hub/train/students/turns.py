"""Train several students in turn, one step each, on the same batches."""

import contextlib
import logging
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path

from pcd_hub.errors import ConfigError, PCDHubError
from pcd_hub.train.distillation.state import Distillation
from pcd_hub.train.run import TrainingRun
from pcd_hub.train.run_folder.how_to_continue import how_to_continue
from pcd_hub.train.signals import StoppedRun
from pcd_hub.train.students.folders import run_folder

log = logging.getLogger("pcd_hub")

Training = Generator[TrainingRun, None, None]
"""Training of one student, which yields its run before the first step and after every step."""


def take_turns(students: Sequence[Distillation], trainings: Sequence[Training]) -> None:
    """Let every student take one step after the other until all are trained.

    A student whose checkpoint is ahead of the others' waits for them, and one that ends early on a
    plateau leaves the others alone.

    Args:
        students: The students, which share their steps.
        trainings: The training of each, not started.

    Raises:
        StoppedRun: If a signal stops the run; all students are saved.
        PCDHubError: If the training of a student fails; the others are saved, if this is possible.
    """
    shared, folder = students[0].shared, run_folder(students)
    with contextlib.ExitStack() as stack:
        turns = [
            _Turn(d, stack.enter_context(contextlib.closing(training)))
            for d, training in zip(students, trainings, strict=True)
        ]
        stack.enter_context(shared.stop.request)
        for turn in turns:
            turn.take()  # it resumes
        while turns:
            step = min(turn.run.done for turn in turns)
            turns = _one_step([turn for turn in turns if turn.run.done == step], turns, folder)
            shared.clear()


class _Turn:
    """Turns of one student."""

    def __init__(self, d: Distillation, training: Training) -> None:
        self.run: TrainingRun
        self._own_state = d.own_state
        self._training = training
        self.d = d

    def take(self) -> bool:
        """Take the next step; return False if the training has ended before."""
        with self._own_state.in_use():
            run = next(self._training, None)
        if run is not None:
            self.run = run
        return run is not None

    def save(self) -> None:
        """Save the completed steps."""
        with self._own_state.in_use():
            self.run.save()


def _one_step(due: Iterable[_Turn], turns: Sequence[_Turn], folder: Path) -> list[_Turn]:
    """Let the students that are due take a step; return those that are not finished."""
    left = list(turns)
    stopped = None
    for turn in due:
        try:
            if not turn.take():
                left.remove(turn)
        except StoppedRun as error:
            left.remove(turn)
            stopped = error
        except PCDHubError as error:
            left.remove(turn)
            _save_after(error, left)
            raise
    if stopped is not None:
        for turn in left:
            turn.save()
        raise type(stopped)(stopped.signum, folder, step=stopped.step)
    return left


def _save_after(error: PCDHubError, others: Iterable[_Turn]) -> None:
    """Save the other students of a run in which one has failed.

    With several processes only after an error that all of them raise, as a checkpoint needs all.
    """
    for turn in others:
        if turn.d.accelerator.num_processes == 1 or isinstance(error, ConfigError):
            turn.save()
            log.info(
                "%s is saved after step %d; %s continues it alone",
                *(turn.d.config.student.arch, turn.run.done),
                how_to_continue(turn.run.folder.path),
            )
