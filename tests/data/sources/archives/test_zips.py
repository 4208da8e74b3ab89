"""Zip files, good and hostile; nothing is ever extracted."""

import io
import pickle
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

from pcd_hub.data.decoding import BrokenImageError
from pcd_hub.data.sources.archives import members, zips
from pcd_hub.data.sources.open import ImageSource, open_source
from pcd_hub.errors import DataError


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


def shade(image) -> int:
    return image.getpixel((0, 0))[0]


def make_zip(path, files, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return str(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_is_read_in_place_in_its_order(tmp_path, method):
    files = [("b/2.png", png(2)), ("a/deep/1.PNG", png(1)), ("größe.png", png(3))]
    noise = [
        ("a/", b""),
        ("readme.md", b"x"),
        ("__MACOSX/b/._2.png", png(9)),
        ("b/.hidden.png", png(9)),
        (".git/x.png", png(9)),
    ]
    uri = make_zip(tmp_path / "photos.zip", [*files, *noise], method)
    source = open_source(uri)
    assert isinstance(source, ImageSource)
    assert [shade(source[i]) for i in range(len(source))] == [2, 1, 3]
    assert source.name(1) == "photos.zip/a/deep/1.PNG"
    again = pickle.loads(pickle.dumps(source))
    assert shade(again[2]) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["photos.zip"]


def test_the_fingerprint_of_a_zip_is_that_of_its_content(tmp_path):
    one = open_source(make_zip(tmp_path / "one.zip", [("a.png", png(1))])).fingerprint()
    copy = open_source(make_zip(tmp_path / "copy.zip", [("a.png", png(1))])).fingerprint()
    other = open_source(make_zip(tmp_path / "b.zip", [("b.png", png(1))])).fingerprint()
    assert one == copy != other
    assert one.startswith("1 files in archives, names sha256 ")


def test_zip64_entries_and_prepended_data_are_read(tmp_path):
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open(zipfile.ZipInfo("a.png"), "w", force_zip64=True) as file:
            file.write(png(1))
        info = zipfile.ZipInfo("b.png")
        info.extra = struct.pack("<HH", 0x7777, 2000) + bytes(2000)
        archive.writestr(info, png(2))
    path.write_bytes(b"#!/bin/sh\n" + path.read_bytes())  # self-extracting
    source = open_source(str(path))
    assert [shade(source[i]) for i in range(2)] == [1, 2]


def test_names_that_leave_the_folder_and_repeated_names_are_harmless(tmp_path):
    hostile = [("../../evil.png", png(1)), ("/etc/evil.png", png(2)), ("C:\\evil.png", png(3))]
    with pytest.warns(UserWarning, match="Duplicate name"):
        uri = make_zip(tmp_path / "x.zip", [*hostile, ("a.png", png(4)), ("a.png", png(5))])
    source = open_source(uri)
    assert [shade(source[i]) for i in range(len(source))] == [1, 2, 3, 4, 5]
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]


def change(path, offset, content):
    data = bytearray(path.read_bytes())
    data[offset : offset + len(content)] = content
    path.write_bytes(data)


def directory(path):
    """Return the offset of the first entry in the list of files."""
    return path.read_bytes().index(b"PK\1\2")


def test_a_bomb_expands_to_its_listed_size_at_most(tmp_path, monkeypatch):
    path = tmp_path / "x.zip"
    make_zip(path, [("a.png", bytes(10**7)), ("b.png", png(7))], zipfile.ZIP_DEFLATED)
    change(path, directory(path) + 24, struct.pack("<I", 100))
    source = open_source(str(path))
    with pytest.raises(BrokenImageError, match=r"x.zip/a.png: .*its size or checksum differs"):
        source[0]
    assert shade(source[1]) == 7
    monkeypatch.setattr(members, "MAX_IMAGE_BYTES", 99)
    with pytest.raises(BrokenImageError, match=r"a.png: ValueError: \d+ bytes: expected at most"):
        source[0]


def test_a_damaged_file_is_a_broken_image(tmp_path):
    path = tmp_path / "x.zip"
    make_zip(path, [("a.png", png(1)), ("b.png", png(2)), ("c.png", b""), ("d\n.png", b"x")])
    source = open_source(str(path))
    content = path.read_bytes()
    change(path, content.index(b"IDAT"), b"XXXX")
    change(path, content.index(b"PK\3\4", 10), b"XXXX")
    reasons = ("checksum differs", "no file at its place", "the file is empty", "cannot identify")
    for index, reason in enumerate(reasons):
        with pytest.raises(BrokenImageError, match=rf"^[^\n]*x.zip/[^\n]*{reason}[^\n]*$"):
            source[index]


def test_encrypted_files_and_other_compressions_are_counted_or_rejected(tmp_path, caplog):
    path = tmp_path / "x.zip"
    make_zip(path, [("a.png", png(1)), ("b.png", png(2))])
    change(path, directory(path) + 8, struct.pack("<H", 1))
    source = open_source(str(path))
    assert "1 of 2 images are encrypted, as 'a.png': expected files that are stored" in caplog.text
    with pytest.raises(BrokenImageError, match="a.png: ValueError: encrypted"):
        source[0]
    assert shade(source[1]) == 2
    make_zip(path, [("a.png", png(1))], zipfile.ZIP_LZMA)
    with pytest.raises(DataError, match="all 1 images are compressed by method 14, .* pack it ag"):
        open_source(str(path))


DAMAGES = {
    "truncated": lambda data: data[:-10],
    "empty": lambda data: b"",
    "a web page": lambda data: b"<html>404</html>",
    "no list": lambda data: data[: data.index(b"PK\1\2")] + data[-22:],
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_zip_is_a_one_line_error(tmp_path, name):
    path = tmp_path / "x.zip"
    make_zip(path, [("a.png", png(1))])
    path.write_bytes(DAMAGES[name](path.read_bytes()))
    with pytest.raises(DataError, match=r"^[^\n]*x.zip cannot be read as a zip file \(.*; copy or"):
        open_source(str(path))


def test_a_huge_list_of_files_is_rejected(tmp_path, monkeypatch):
    uri = make_zip(tmp_path / "x.zip", [(f"{n}.png", b"x") for n in range(100)])
    monkeypatch.setattr(zips, "MAX_DIRECTORY_BYTES", 1000)
    with pytest.raises(DataError, match=r"its list of files has \d+ bytes: expected at most 1000"):
        open_source(uri)


def test_a_zip_without_images_is_rejected(tmp_path):
    with pytest.raises(DataError, match="x.zip has no image: expected files such as .jpg or .png"):
        open_source(make_zip(tmp_path / "x.zip", [("a.txt", b"x")]))
    with pytest.raises(DataError, match=r"x.zip has no image: 1 video not read; `mkdir FRAMES && "):
        open_source(make_zip(tmp_path / "x.zip", [("a.mp4", b"x")]))
    with pytest.raises(DataError, match="no zip file .*nowhere.zip: expected a zip file of images"):
        open_source(str(tmp_path / "nowhere.zip"))


def test_a_zip_that_is_replaced_while_it_is_read_gives_broken_images(tmp_path):
    path = tmp_path / "x.zip"
    make_zip(path, [("a.png", png(1)), ("b.png", png(2))])
    source = open_source(str(path))
    assert shade(source[0]) == 1
    path.write_bytes(b"short")
    with pytest.raises(BrokenImageError, match="no file at its place in the zip file; was it repl"):
        source[1]
    other = pickle.loads(
        pickle.dumps(open_source(make_zip(tmp_path / "y.zip", [("a.png", png(1))])))
    )
    (tmp_path / "y.zip").unlink()
    with pytest.raises(BrokenImageError, match="y.zip/a.png: FileNotFoundError"):
        other[0]


def test_a_million_names_take_the_memory_of_their_characters():
    from pcd_hub.data.sources.names import PackedNames

    names = PackedNames([*(f"{number:06}.jpg" for number in range(1000)), "x" * 100_000, "\udcff"])
    assert (names[0], names[999], names[-1]) == ("000000.jpg", "000999.jpg", "\udcff")
    assert list(names) == [names[index] for index in range(len(names))]
    assert len(pickle.dumps(names)) < 1000 * 20 + 100_000 + 2000
    with pytest.raises(IndexError):
        names[1002]
    assert len(PackedNames([])) == 0


def test_all_images_of_a_zip_are_equal_to_those_of_the_folder(tmp_path):
    files = [(f"{n:02}.png", png(n)) for n in range(20)]
    (tmp_path / "folder").mkdir()
    for name, content in files:
        (tmp_path / "folder" / name).write_bytes(content)
    folder = open_source(str(tmp_path / "folder"))
    packed = open_source(make_zip(tmp_path / "x.zip", files))
    for index in range(20):
        assert np.array_equal(np.asarray(folder[index]), np.asarray(packed[index]))


def test_an_archive_that_is_replaced_is_read_anew(tmp_path):
    path = tmp_path / "photos.zip"
    first = open_source(make_zip(path, [("1.png", png(1)), ("2.png", png(2))]))
    assert isinstance(first, ImageSource)
    assert shade(first[1]) == 2
    path.unlink()
    second = open_source(make_zip(path, [("longer name.png", png(3))], zipfile.ZIP_DEFLATED))
    assert isinstance(second, ImageSource)
    assert shade(second[0]) == 3
