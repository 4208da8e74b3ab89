import subprocess
import sys

import numpy as np
import pytest
from filelock import FileLock, Timeout

from pcd_hub.errors import DataError
from pcd_hub.train.teacher.cache import store as module
from pcd_hub.train.teacher.cache.store import CHECKSUMS, LOCK, RECORDS, RecordStore

NO = np.zeros(2, bool)


def opened(folder, *, num_records=10, record_bytes=100) -> RecordStore:
    return RecordStore(folder, num_records=num_records, record_bytes=record_bytes)


def rows(*values: int) -> np.ndarray:
    return np.full((len(values), 100), np.array(values)[:, None], np.uint8)


def test_records_are_read_by_their_numbers(tmp_path):
    store = opened(tmp_path / "cache")
    store.write(np.array([7, 2]), rows(70, 20), replace=NO)
    found, is_valid, is_damaged = store.read(np.array([2, 3, 7]))
    assert is_valid.tolist() == [True, False, True]
    assert not is_damaged.any()
    assert (found[[0, 2]] == rows(20, 70)).all()
    assert (len(store), store.num_complete) == (10, 2)
    assert (opened(tmp_path / "cache").read(np.array([7]))[0] == 70).all()


def test_a_record_of_zeros_is_not_a_missing_one(tmp_path):
    store = opened(tmp_path)
    store.write(np.array([0, 9]), rows(0, 0), replace=NO)
    assert store.read(np.array([0, 9, 1]))[1].tolist() == [True, True, False]


def test_what_another_run_has_written_is_kept_unless_it_is_replaced(tmp_path):
    store, other = opened(tmp_path), opened(tmp_path)
    store.write(np.array([1, 2]), rows(1, 2), replace=NO)
    other.write(np.array([1, 2]), rows(11, 12), replace=np.array([False, True]))
    assert store.read(np.array([1, 2]))[0][:, 0].tolist() == [1, 12]


@pytest.mark.parametrize("place", [0, 50, 99])
def test_a_changed_byte_is_damage(tmp_path, place):
    store = opened(tmp_path)
    store.write(np.array([3, 4]), rows(3, 4), replace=NO)
    with (tmp_path / RECORDS).open("r+b") as file:
        file.seek(300 + place)
        file.write(b"\x99")
    _, is_valid, is_damaged = store.read(np.array([3, 4]))
    assert (is_valid.tolist(), is_damaged.tolist()) == ([False, True], [True, False])


def test_a_record_in_the_place_of_another_is_damage(tmp_path):
    store = opened(tmp_path)
    store.write(np.array([3, 4]), rows(3, 4), replace=NO)
    for name, size in ((RECORDS, 100), (CHECKSUMS, 4)):
        content = bytearray((tmp_path / name).read_bytes())
        content[5 * size : 6 * size] = content[3 * size : 4 * size]
        (tmp_path / name).write_bytes(content)
    assert opened(tmp_path).read(np.array([5]))[2].tolist() == [True]


@pytest.mark.parametrize("last", [0, 1, 2])
def test_a_kill_in_the_middle_of_writing_leaves_missing_records(tmp_path, monkeypatch, last):
    """Two records are written in three parts; ``last`` of them are complete, one is half."""
    store = opened(tmp_path)
    write, count = RecordStore._write, 0

    def killed(self, file, slots, values):
        nonlocal count
        if count == last:
            write(self, file, slots[:1], values[:1])
            raise KeyboardInterrupt
        count += 1
        write(self, file, slots, values)

    monkeypatch.setattr(RecordStore, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        store.write(np.array([3, 4]), rows(3, 4), replace=NO)
    monkeypatch.undo()
    again = opened(tmp_path)
    _, is_valid, is_damaged = again.read(np.array([3, 4]))
    assert not is_damaged.any()
    assert not is_valid[1]
    again.write(np.array([3, 4]), rows(3, 4), replace=NO)
    assert again.read(np.array([3, 4]))[1].all()


def test_files_of_another_size_are_refused(tmp_path):
    opened(tmp_path)
    with pytest.raises(DataError, match=r"records.bin has 1000 bytes, expected 1100; ") as refused:
        opened(tmp_path, num_records=11)
    command = f"remove this cache (pcd-hub cache --dir {tmp_path.parent} --remove {tmp_path.name})"
    assert str(refused.value).endswith(command)


def test_files_that_are_still_empty_are_filled(tmp_path):
    (tmp_path / RECORDS).touch()
    assert not opened(tmp_path).read(np.array([1]))[1].any()


def test_missing_records_take_no_space(tmp_path):
    opened(tmp_path, num_records=1_000_000)
    found = (tmp_path / RECORDS).stat()
    assert found.st_size == 100_000_000
    assert found.st_blocks * 512 < 1_000_000


def test_writing_waits_for_the_lock_but_not_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_LOCK_SECONDS", 0.2)
    store = opened(tmp_path)
    code = (
        "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); "
        "print('held', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / LOCK)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(Timeout):
            store.write(np.array([1, 2]), rows(1, 2), replace=NO)
        assert not store.read(np.array([1, 2]))[1].any(), "reading needs no lock"
        other.communicate("\n")
    store.write(np.array([1, 2]), rows(1, 2), replace=NO)
    assert FileLock(tmp_path / LOCK).acquire(timeout=1)
