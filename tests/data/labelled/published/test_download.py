"""Published sets are downloaded once, by torchvision's own code, from a server on this machine."""

import dataclasses
import hashlib
import inspect
import socket
import threading
import time

import pytest
from torchvision.datasets import dtd, eurosat, oxford_iiit_pet

from pcd_hub.data.labelled.published.download import archive_file, prepare_set
from pcd_hub.data.labelled.published.layouts import write_dtd
from pcd_hub.data.labelled.published.sets import DTD, EUROSAT, OXFORD_PETS, SETS
from pcd_hub.errors import ConfigError, DataError
from tests.data.labelled.published.drawn_archives import (
    DRAWN,
    dtd_archives,
    eurosat_archives,
    pets_archives,
    tar_gz,
)


@pytest.mark.parametrize(
    ("one", "module"), [(OXFORD_PETS, oxford_iiit_pet), (EUROSAT, eurosat), (DTD, dtd)]
)
def test_addresses_and_md5_sums_are_those_of_torchvision(one, module):
    source = inspect.getsource(module)
    for archive in one.archives:
        assert f'"{archive.url}"' in source
        assert f'"{archive.md5}"' in source


@pytest.mark.parametrize(("real", "archives"), DRAWN)
def test_a_set_is_downloaded_and_written_once(server, tmp_path, real, archives):
    one = server.serve(real, archives())
    folder = prepare_set(one, tmp_path)
    assert folder == tmp_path / real.name
    assert len(server.requests) == 2 * len(one.archives)  # one looks for a redirection
    server.requests.clear()
    assert prepare_set(one, tmp_path) == folder
    assert not server.requests
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(f".{real.name}-")]


def test_a_removed_layout_is_written_from_the_archive_and_a_removed_archive_is_not_missed(
    server, tmp_path
):
    import shutil

    one = server.serve(DTD, dtd_archives())
    folder = prepare_set(one, tmp_path)
    server.requests.clear()
    shutil.rmtree(folder)
    prepare_set(one, tmp_path)
    shutil.rmtree(tmp_path / "archives")
    prepare_set(one, tmp_path)
    assert (folder / "train").is_dir()
    assert not server.requests


def test_an_archive_with_another_md5_is_refused(server, tmp_path):
    one = server.serve(EUROSAT, eurosat_archives())
    server.files["/eurosat/EuroSAT.zip"] = other = b"another file"
    found = hashlib.md5(other, usedforsecurity=False).hexdigest()
    expected = f"12 bytes with md5 {found}, expected {one.archives[0].md5}"
    with pytest.raises(DataError, match=expected) as error:
        prepare_set(one, tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "eurosat").exists()


def test_a_download_that_was_cut_off_starts_again(server, tmp_path):
    one = server.serve(EUROSAT, raw := eurosat_archives())
    server.cut_after = 5000
    with pytest.raises(DataError, match="cannot download eurosat"):
        prepare_set(one, tmp_path)
    file = archive_file(one, one.archives[0], tmp_path)
    assert 0 < file.stat().st_size < len(raw["EuroSAT.zip"])
    prepare_set(one, tmp_path)
    assert file.read_bytes() == raw["EuroSAT.zip"]


def test_the_second_archive_alone_is_downloaded_after_an_interruption(server, tmp_path):
    one = server.serve(OXFORD_PETS, pets_archives())
    annotations = server.files.pop("/oxford_pets/annotations.tar.gz")
    server.files["/oxford_pets/annotations.tar.gz"] = b"cut"
    with pytest.raises(DataError, match="annotations"):
        prepare_set(one, tmp_path)
    server.files["/oxford_pets/annotations.tar.gz"] = annotations
    server.requests.clear()
    prepare_set(one, tmp_path)
    assert set(server.requests) == {"/oxford_pets/annotations.tar.gz"}


def test_without_a_network_one_line_names_the_place_of_the_archive(server, tmp_path, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    raw = dtd_archives()
    monkeypatch.setattr(server, "address", address)
    one = server.serve(DTD, raw)
    with pytest.raises(DataError, match="connect to the internet and start the same") as error:
        prepare_set(one, tmp_path)
    file = tmp_path / "archives" / "dtd" / "dtd-r1.0.1.tar.gz"
    message = str(error.value)
    assert "\n" not in message
    assert f"or save {one.archives[0].url} as {file} (md5 {one.archives[0].md5})" in message
    file.write_bytes(raw[file.name])
    prepare_set(one, tmp_path)


def test_no_request_is_made_if_the_hub_is_offline(server, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    raw = dtd_archives()
    one = server.serve(DTD, raw)
    with pytest.raises(DataError, match="HF_HUB_OFFLINE is set"):
        prepare_set(one, tmp_path)
    file = archive_file(one, one.archives[0], tmp_path)
    file.write_bytes(raw[file.name])
    prepare_set(one, tmp_path)
    assert not server.requests


def test_an_incomplete_layout_is_never_left(server, tmp_path):
    one = server.serve(DTD, {"dtd-r1.0.1.tar.gz": tar_gz({"dtd/labels/train1.txt": b"a/b.jpg\n"})})
    with pytest.raises(DataError, match=r"has no dtd/labels/test1.txt"):
        prepare_set(one, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".dtd.lock", "archives"]


def test_processes_that_start_together_download_once(server, tmp_path):
    written = []

    def write(archives, folder):
        written.append(folder)
        time.sleep(0.1)
        write_dtd(archives, folder)

    one = dataclasses.replace(server.serve(DTD, dtd_archives()), write=write)
    threads = [threading.Thread(target=prepare_set, args=(one, tmp_path)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.requests) == 2
    assert len(written) == 1
    assert (tmp_path / "dtd" / "test").is_dir()


def test_a_set_that_is_ready_needs_no_writable_folder(server, tmp_path, monkeypatch):
    one = server.serve(DTD, dtd_archives())
    prepare_set(one, tmp_path)
    monkeypatch.setattr("pcd_hub.data.labelled.published.download.FileLock", None)
    monkeypatch.setattr("pcd_hub.data.labelled.published.download.check_writable", None)
    assert prepare_set(one, tmp_path) == tmp_path / "dtd"


def test_too_little_space_is_said_before_the_download(server, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10**6}))
    one = server.serve(DTD, dtd_archives())
    with pytest.raises(ConfigError, match="has 1 MB free, expected at least 2 MB; free some"):
        prepare_set(one, tmp_path)
    assert not server.requests


def test_every_set_is_known_by_its_own_name():
    assert {name: one.name for name, one in SETS.items()} == {name: name for name in SETS}
