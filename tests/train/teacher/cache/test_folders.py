import json

import numpy as np
import pytest

from pcd_hub import cli
from pcd_hub.errors import ConfigError
from pcd_hub.train.teacher.cache import folders
from pcd_hub.train.teacher.cache.folders import FACTS, list_caches, remove_cache
from pcd_hub.train.teacher.cache.key import cache_name
from pcd_hub.train.teacher.cache.preparing import prepare_folder
from pcd_hub.train.teacher.cache.store import RECORDS, RecordStore

pytestmark = pytest.mark.usefixtures("no_pictures")

FACTS_OF_A_CACHE = {
    "teacher": {"architecture": "vit_small_patch16_224.dino"},
    "images": {"number": 20, "fingerprint": "20 files"},
}
OUTPUT = [1.0, 0.0, 0.0, 1.0]


def a_cache(place, *, written=15, **changes):
    facts = json.loads(json.dumps(FACTS_OF_A_CACHE)) | changes
    folder = prepare_folder(place, facts, OUTPUT)
    store = RecordStore(folder, num_records=20, record_bytes=8192)
    slots = np.arange(written)
    rows = np.ones((written, 8192), np.uint8)
    store.write(slots, rows, replace=np.zeros(written, bool))
    return folder


def test_caches_are_listed_with_their_size(tmp_path):
    folder = a_cache(tmp_path)
    (tmp_path / "another folder").mkdir()
    (tmp_path / "file").touch()
    (cache,) = list_caches(tmp_path)
    assert (cache.path, cache.images, cache.complete) == (folder, 20, 0.75)
    assert cache.teacher == "vit_small_patch16_224.dino"
    assert 15 * 8192 <= cache.num_bytes < 20 * 8192
    assert folder.name.startswith("vit_small_patch16_224_dino-")
    assert list_caches(tmp_path / "none") == []


def test_the_name_depends_on_every_fact():
    one = json.loads(json.dumps(FACTS_OF_A_CACHE))
    other = json.loads(json.dumps(FACTS_OF_A_CACHE))
    other["images"]["fingerprint"] = "21 files"
    assert cache_name(one) != cache_name(other)
    assert cache_name(one) == cache_name(dict(reversed(one.items())))


def test_a_removed_cache_leaves_the_others(tmp_path):
    one, other = a_cache(tmp_path), a_cache(tmp_path, images={"number": 3})
    assert [cache.path for cache in remove_cache(tmp_path, one.name)] == [one]
    assert [cache.path for cache in list_caches(tmp_path)] == [other]
    with pytest.raises(ConfigError, match=rf"no cache nothing in .*, which has {other.name}"):
        remove_cache(tmp_path, "nothing")
    assert len(remove_cache(tmp_path, "all")) == 1
    assert remove_cache(tmp_path, "all") == []


def test_only_the_files_of_a_cache_are_removed(tmp_path):
    folder = a_cache(tmp_path)
    (folder / "letter.txt").write_text("mine")
    with pytest.raises(ConfigError, match="cannot remove .*; remove it by hand"):
        remove_cache(tmp_path, folder.name)
    assert (folder / "letter.txt").read_text() == "mine"


def test_a_name_is_not_a_path(tmp_path):
    a_cache(tmp_path / "inner")
    (tmp_path / "outer").mkdir()
    for name in ("../inner", str(tmp_path / "inner"), "", "."):
        with pytest.raises(ConfigError, match="no cache"):
            remove_cache(tmp_path / "outer", name)
    assert list_caches(tmp_path / "inner")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"teacher_output": "x"}', b"\xff" * 50])
def test_a_damaged_description_is_refused_but_listed_and_removable(tmp_path, content):
    folder = a_cache(tmp_path)
    (folder / FACTS).write_bytes(content)
    with pytest.raises(ConfigError, match=r"cache.json is damaged; remove it \(pcd-hub cache"):
        a_cache(tmp_path)
    (cache,) = list_caches(tmp_path)
    assert cache.teacher == "?"
    remove_cache(tmp_path, folder.name)


def test_records_without_a_description_are_refused(tmp_path):
    folder = a_cache(tmp_path)
    (folder / FACTS).unlink()
    assert (folder / RECORDS).exists()
    with pytest.raises(ConfigError, match="has no cache.json; remove it"):
        a_cache(tmp_path)


def test_another_teacher_is_refused(tmp_path):
    folder = a_cache(tmp_path)
    with pytest.raises(ConfigError, match="the same weights but another output"):
        prepare_folder(tmp_path, FACTS_OF_A_CACHE, [0.0, 1.0, 0.0, 1.0])
    facts = json.loads((folder / FACTS).read_text()) | {"images": {"number": 99}}
    (folder / FACTS).write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match="for another teacher or other images"):
        prepare_folder(tmp_path, FACTS_OF_A_CACHE, OUTPUT)


def test_the_command_lists_and_removes(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PCD_HUB_HOME", str(tmp_path))
    folder = a_cache(tmp_path / "teacher_cache")
    cli.main(["cache"])
    line = f"{folder.name}  0.00 GB  vit_small_patch16_224.dino  20 images  75% full\n"
    assert capsys.readouterr().out == line
    cli.main(["cache", "--json", "--dir", str(tmp_path / "teacher_cache")])
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["path"], found["images"]) == (str(folder), 20)
    with pytest.raises(SystemExit, match="^2$"):
        cli.main(["cache", "--remove", "x"])
    assert capsys.readouterr().err.startswith("error: no cache x in")
    cli.main(["cache", "--remove", "all"])
    assert capsys.readouterr().out.endswith("20 images  removed\n")
    cli.main(["cache"])
    assert capsys.readouterr().out == f"no caches of a teacher in {tmp_path / 'teacher_cache'}\n"


def test_a_cache_of_another_user_is_listed_without_its_facts(tmp_path, monkeypatch):
    folder = a_cache(tmp_path)
    read = folders.read_bounded

    def refused(file, *args):
        if file.name == FACTS:
            raise PermissionError(13, "Permission denied")
        return read(file, *args)

    monkeypatch.setattr(folders, "read_bounded", refused)
    (cache,) = list_caches(tmp_path)
    assert cache.path == folder
