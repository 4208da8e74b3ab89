import errno
import json
import os

import pytest
from PIL import Image

from pcd_hub.data.labelled.classification import open_classification
from pcd_hub.data.labelled.segmentation import open_segmentation
from pcd_hub.data.sources.files import find_image_paths, read_lines
from pcd_hub.data.sources.open import open_source
from pcd_hub.data.sources.uris import split_uri
from pcd_hub.errors import DataError, PCDHubError
from pcd_hub.evaluate.models import open_model


def save(path, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (4, 4)).save(path)


@pytest.fixture
def tree(tmp_path):
    """Images and masks of a split, partly behind links, with the hidden files of editors."""
    for kind, mode in (("images", "RGB"), ("masks", "L")):
        split = tmp_path / "data" / kind / "val"
        save(split / "a" / "0.png", mode)
        save(split / "a" / ".ipynb_checkpoints" / "0-checkpoint.png", mode)
        save(split / "a" / "._0.png", mode)
        save(tmp_path / "far" / kind / "1.png", mode)
        (split / "b").symlink_to(tmp_path / "far" / kind)
        (split / "c").symlink_to(tmp_path / "far" / kind)  # the same folder again
        (split / "a" / "circle").symlink_to(split)
    (tmp_path / "data/classes.json").write_bytes(
        json.dumps({"classes": ["x", "y"]}).encode("utf-16")
    )
    return tmp_path / "data"


def test_all_kinds_of_data_sets_find_the_same_images(tree):
    split = tree / "images" / "val"
    assert find_image_paths(split) == ["a/0.png", "b/1.png"]
    assert len(open_source(str(split))) == 2
    assert len(open_segmentation(str(tree), "val")) == 2
    with pytest.raises(DataError, match=r"there is no .*test; .*images has val"):
        open_segmentation(str(tree), "test")
    (split / "c").unlink()
    save(split / ".hidden" / "2.png")
    found = open_classification(str(tree / "images"), "val")
    assert (found.classes, found.labels) == (("a", "b"), [0, 1])


@pytest.mark.parametrize("name", ["images/val/a", "masks/val/a", "images/val"])
def test_a_folder_that_cannot_be_listed_is_an_error(tree, monkeypatch, name):
    scandir = os.scandir

    def fail(path):
        if os.fspath(path) == str(tree / name):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fail)
    message = rf"^the folder {tree / name} cannot be listed \(Permission denied\); make it readable"
    with pytest.raises(DataError, match=message):
        open_segmentation(str(tree), "val")
    if name == "images/val":
        for open_it in (lambda: open_source(str(tree / name)), lambda: classified(tree)):
            with pytest.raises(DataError, match=message):
                open_it()


def classified(tree):
    return open_classification(str(tree / "images"), "val")


def test_a_broken_link_is_logged(tree, caplog):
    (tree / "images" / "val" / "unmounted").symlink_to("/no/such/disk")
    assert len(find_image_paths(tree / "images" / "val")) == 2
    assert "val/unmounted is a broken link; the images behind it, if any" in caplog.text


# Lists.

NAMES = ["a.png", "größe/b.png", " c d.png"]


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_list_is_decoded_by_its_byte_order_mark(tmp_path, encoding, end):
    marked = encoding in {"utf-16-le", "utf-16-be"}
    content = ("\ufeff" if marked else "") + end.join([*NAMES, "", ""])
    (tmp_path / "list.txt").write_bytes(content.encode(encoding))
    assert read_lines(tmp_path / "list.txt") == NAMES


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "a.png\r\n\xe9.png".encode("latin-1"),
            r"line 2 is not UTF-8: expected UTF-8; save the list as UTF-8",
        ),
        ("a.png\nb.png\n".encode("utf-16-le"), r"line 1 contains a NUL character: expected UTF-8"),
        ("a.png\nb.png\n".encode("utf-16")[:-1], r"line 2 is not UTF-16: expected UTF-8"),
    ],
)
def test_a_list_in_another_encoding_is_rejected_with_its_line(tmp_path, content, message):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(DataError, match=rf"^{tmp_path}/list.txt, {message}"):
        open_source(str(tmp_path / "list.txt"))
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/val.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_segmentation(f"voc:{tmp_path}", "val")


def test_an_unreadable_list_is_a_one_line_error(tmp_path, monkeypatch):
    def no_right(path, *_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    (tmp_path / "list.txt").write_text("a.png\n")
    monkeypatch.setattr("pathlib.Path.read_bytes", no_right)
    with pytest.raises(DataError, match=r"^the list .*/list.txt cannot be read .Permission denied"):
        open_source(str(tmp_path / "list.txt"))


def test_a_list_may_contain_absolute_and_home_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("home/a.png", "far/b.png", "lists/c.png"):
        save(tmp_path / name)
    listed = f"~/a.png\n{tmp_path}/far/b.png\nc.png\n../far/b.png\n"
    (tmp_path / "lists" / "list.txt").write_text(listed)
    source = open_source(str(tmp_path / "lists" / "list.txt"))
    assert [source[row].size for row in range(4)] == [(4, 4)] * 4


# Invalid names.


def open_val(uri: str):
    return open_segmentation(uri, "val")


def open_classes(uri: str):
    return open_classification(uri, "val")


DATA_OPENERS = (open_source, open_val, open_classes)
OPENERS = {
    open_source: ("", "foo:", "hf:", "hf-disk:", "hf-stream:"),
    open_val: ("", "foo:", "voc:", "ade20k:", "cityscapes:", "hf:", "hf-disk:"),
    open_classes: ("", "foo:", "hf:", "hf-disk:"),
    open_model: ("local-dir:", "teacher:local-dir:"),
}


@pytest.mark.parametrize("name", ["a" * 300, f"{'a' * 300}/b.txt"])
@pytest.mark.parametrize(
    ("opener", "scheme"), [(opener, scheme) for opener in OPENERS for scheme in OPENERS[opener]]
)
def test_a_name_too_long_for_the_system_is_a_one_line_error(opener, scheme, name):
    with pytest.raises(PCDHubError, match="^.+$") as caught:
        opener(scheme + name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("opener", "scheme"),
    [(opener, scheme) for opener in DATA_OPENERS for scheme in OPENERS[opener] if scheme != "foo:"],
)
@pytest.mark.parametrize(
    ("name", "message"),
    [("", "' names no folder or data set"), ("~a\0b", "'.*~a.x00b' contains a NUL character")],
)
def test_empty_and_impossible_names_are_rejected(tree, monkeypatch, opener, scheme, name, message):
    monkeypatch.chdir(tree)
    with pytest.raises(DataError, match=message):
        opener(scheme + name)


@pytest.mark.parametrize("uri", [" ", "hf::train", "hf: ", "hf-disk:", "hf-stream::"])
def test_an_empty_name_is_not_the_working_folder(tree, monkeypatch, uri):
    monkeypatch.chdir(tree)
    with pytest.raises(DataError, match="names no folder or data set .is a shell variable unset"):
        open_source(uri)


# Colons.


def test_only_known_schemes_are_split_from_paths(tmp_path, monkeypatch):
    assert split_uri("hf:a/b:c", ("hf",)) == ("hf", "a/b:c")
    for path in ("2026-11-26T10:30", "/a:b", "D:/images", "./hf:x", "x/hf:y", "images"):
        assert split_uri(path, ("hf",)) == ("", path)
    (tmp_path / "hf2:x").mkdir()
    monkeypatch.chdir(tmp_path)
    assert split_uri("hf2:x", ("hf",)) == ("", "hf2:x")
    with pytest.raises(DataError, match="unknown kind of data set 'hf2'; did you mean 'hf'"):
        split_uri("hf2:y", ("hf",))


def test_a_path_may_contain_a_colon(tree):
    place = tree.rename(tree.with_name("2026-11-26T10:30"))
    for source in (str(place), os.path.relpath(place)):
        assert len(open_source(f"{source}/images/val")) == 2
        assert len(open_segmentation(source, "val")) == 2
        assert open_classification(f"{source}/images", "val").labels == [0, 1]


def test_the_home_of_an_unknown_user_is_not_expanded(tmp_path):
    with pytest.raises(DataError, match="no folder ~nobody-of-this-name/images"):
        open_source("~nobody-of-this-name/images")
