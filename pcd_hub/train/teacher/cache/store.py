"""Records of a fixed size in one file, which several runs fill and read at once.

A record is complete when its checksum is: it is written after the record, and 0 stands for a record
that is missing. A process that is killed therefore leaves a missing record, a power failure one
whose checksum is wrong. Writing holds a lock; reading needs none. The files are sparse: they take
the space of the records that exist.
"""

import logging
import zlib
from pathlib import Path

import numpy as np
from filelock import FileLock
from jaxtyping import Bool, Int, UInt8

from pcd_hub.errors import DataError

log = logging.getLogger("pcd_hub")

RECORDS, CHECKSUMS, LOCK = "records.bin", "checksums.bin", "lock"
_LOCK_SECONDS = 30.0

Slots = Int[np.ndarray, " n"]
Rows = UInt8[np.ndarray, "n bytes"]


class RecordStore:
    """The records of one cache, each with its number.

    Args:
        folder: Folder of the files, which are created if they do not exist.
        num_records: Number of records.
        record_bytes: Bytes of a record.

    Raises:
        DataError: If the files have another size.
        OSError: If they cannot be created or opened.
    """

    def __init__(self, folder: Path, *, num_records: int, record_bytes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / LOCK, timeout=_LOCK_SECONDS)
        sizes = {RECORDS: num_records * record_bytes, CHECKSUMS: num_records * 4}
        with self._lock:
            for name, size in sizes.items():
                _make_file(folder / name, size)
        self.record_bytes = record_bytes
        self._paths = (folder / RECORDS, folder / CHECKSUMS)
        records, checksums = self._paths
        self._records = np.memmap(records, np.uint8, "r", shape=(num_records, record_bytes))
        self._checksums = np.memmap(checksums, "<u4", "r", shape=(num_records,))

    def __len__(self) -> int:
        return len(self._checksums)

    @property
    def num_complete(self) -> int:
        """Number of records that were written."""
        return int(np.count_nonzero(self._checksums))

    def read(self, slots: Slots) -> tuple[Rows, Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
        """Return records, which are valid, and which are damaged; the others are missing."""
        expected = self._checksums[slots]
        rows = np.zeros((len(slots), self.record_bytes), np.uint8)
        is_written = expected != 0
        rows[is_written] = self._records[slots[is_written]]
        actual = np.array(
            [checksum(row, slot) for row, slot in zip(rows, slots, strict=True)], np.uint32
        )
        is_valid = is_written & (actual == expected)
        return rows, is_valid, is_written & ~is_valid

    def write(self, slots: Slots, rows: Rows, *, replace: Bool[np.ndarray, " n"]) -> None:
        """Write records; those that another process has written meanwhile are kept.

        Args:
            slots: Number of each record, once each.
            rows: The records.
            replace: Which are written even if they exist.

        Raises:
            OSError: If the disk is full or cannot be written, or the lock cannot be taken.
        """
        with self._lock:
            wanted = replace | (self._checksums[slots] == 0)
            slots, rows = slots[wanted], rows[wanted]
            self._write(1, slots, np.zeros(len(slots), "<u4"))
            self._write(0, slots, rows)
            sums = [checksum(row, slot) for row, slot in zip(rows, slots, strict=True)]
            self._write(1, slots, np.array(sums, "<u4"))

    def _write(self, file: int, slots: Slots, values: np.ndarray) -> None:
        """Write without a memory map: a full disk is then an error, not the end of the process."""
        with self._paths[file].open("r+b", buffering=0) as opened:
            for slot, value in zip(slots.tolist(), values, strict=True):
                content = value.tobytes()
                opened.seek(slot * len(content))
                if opened.write(content) != len(content):
                    raise OSError(f"{self._paths[file]}: the disk is full")


def checksum(row: UInt8[np.ndarray, " bytes"], slot: int) -> int:
    """Return the checksum of a record, never 0; it differs for another record's number."""
    return zlib.crc32(row.tobytes(), int(slot) & 0xFFFFFFFF) or 1


def _make_file(path: Path, size: int) -> None:
    """Create a sparse file of ``size`` bytes; a file that a killed process left empty is filled."""
    with path.open("ab") as file:
        found = file.tell()
        if found == 0:
            file.truncate(size)
        elif found != size:
            raise DataError(
                f"{path} has {found} bytes, expected {size}; remove this cache "
                f"(pcd-hub cache --dir {path.parent.parent} --remove {path.parent.name})"
            )
