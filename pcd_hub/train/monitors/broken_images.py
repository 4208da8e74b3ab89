"""Count and log the images that could not be read, over all processes."""

import itertools
import logging
from collections.abc import Iterable

from accelerate import Accelerator
from accelerate.utils import gather_object

from pcd_hub.data.loader import Batch
from pcd_hub.data.survey.result import MAX_BROKEN_SHARE
from pcd_hub.errors import DataError

log = logging.getLogger("pcd_hub")

_MAX_NAMED = 10
_MIN_STREAM_IMAGES = 1000  # fewer make the share of broken images of a stream unreliable


class BrokenImages:
    """Counter of the broken images that the loaders of all processes have skipped.

    Args:
        accelerator: The run's Accelerator.
        num_images: Images in the source; None for a stream.
    """

    def __init__(self, accelerator: Accelerator, *, num_images: int | None) -> None:
        self._accelerator = accelerator
        self._num_images = num_images
        self._new: dict[str, str] = {}
        self._known: dict[str, str] = {}
        self._rows_seen = 0

    def add(self, batches: Iterable[Batch]) -> None:
        """Add the broken images that these batches report."""
        for batch in batches:
            self._new.update(batch.broken)
            self._rows_seen += len(batch.indices) + len(batch.broken)

    def check(self) -> None:
        """Log the names of newly found broken images; call it on every process.

        Raises:
            DataError: If more than 1 % of the images are broken.
        """
        gathered = gather_object([(self._rows_seen, list(self._new.items()))])
        reported = itertools.chain.from_iterable(items for _, items in gathered)
        new = {name: reason for name, reason in reported if name not in self._known}
        self._new.clear()
        for name, reason in itertools.islice(new.items(), max(0, _MAX_NAMED - len(self._known))):
            log.warning("skipped a broken image: %s (%s)", name, reason)
        self._known |= new
        total = self._num_images or max(sum(rows for rows, _ in gathered), _MIN_STREAM_IMAGES)
        if len(self._known) > MAX_BROKEN_SHARE * total:
            name, reason = next(iter(self._known.items()))
            raise DataError(
                f"{len(self._known)} of {total} images cannot be read, expected at most "
                f"{MAX_BROKEN_SHARE:.0%}; repair or remove them, the first is {name} ({reason})"
            )

    def log_total(self) -> None:
        """Log how many images were skipped in the whole run."""
        if self._known:
            log.warning("skipped %d broken images in total", len(self._known))
