"""Tar shards: indexed, or as streams."""

import io
import pickle
import tarfile

import pytest

from pcd_hub.data.decoding import BrokenImageError, as_rgb
from pcd_hub.data.sources.archives import members, tar_stream
from pcd_hub.data.sources.archives.tars import find_masks
from pcd_hub.data.sources.open import ImageSource, ImageStream, open_source, open_sources
from pcd_hub.errors import DataError
from tests.data.sources.archives.test_zips import png, shade


def make_tar(path, files, mode="w", **options):
    with tarfile.open(path, mode, **options) as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return str(path)


def samples(first, last):
    """Return WebDataset samples: an image, a mask and a label each."""
    for number in range(first, last):
        yield f"{number:04}.seg.png", png(255)
        yield f"{number:04}.png", png(number)
        yield f"{number:04}.cls", b"3"


@pytest.fixture
def shards(tmp_path):
    for number in range(3):
        make_tar(tmp_path / f"shards-{number:06}.tar", samples(4 * number, 4 * number + 4))
    return tmp_path


@pytest.mark.parametrize("name", ["shards-{000000..000002}.tar", "*.tar", "shards-00000?.tar"])
def test_shards_are_indexed_in_their_order_without_masks(shards, name):
    source = open_source(str(shards / name))
    assert isinstance(source, ImageSource)
    assert [shade(source[i]) for i in range(len(source))] == list(range(12))
    assert source.name(5) == "shards-000001.tar/0005.png"
    assert shade(pickle.loads(pickle.dumps(source))[7]) == 7


def test_shards_in_succession_are_one_source(shards):
    names = [str(shards / f"shards-{number:06}.tar") for number in range(3)]
    whole = open_source(str(shards / "*.tar"))
    assert open_sources(names).fingerprint() == whole.fingerprint()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_links_and_folders_in_a_tar(tmp_path, form):
    long = "/".join(["d" * 60] * 3) + "/a.png"
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=form) as archive:
        for kind, name in ((tarfile.DIRTYPE, "d.png"), (tarfile.SYMTYPE, "l.png")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        for name in (long, "../../b.png", "./c.png", "._d.png"):
            info = tarfile.TarInfo(name)
            info.size = len(png(1))
            info.mtime = 1.5
            archive.addfile(info, io.BytesIO(png(1)))
    source = open_source(str(path))
    assert [source.name(i).partition("/")[2] for i in range(3)] == [long, "../../b.png", "./c.png"]
    assert [shade(source[i]) for i in range(len(source))] == [1, 1, 1]


def test_a_dot_in_a_name_does_not_make_a_mask():
    assert find_masks(["a.b.png", "c.png", "c.seg.png", "x/c.b.png"]) == {"c.seg.png"}
    assert find_masks(["photo.jpg", "photo.1.jpg", "photo.2.jpg"]) == set()


def test_a_tar_that_is_named_in_two_ways_is_read_once(shards, monkeypatch, caplog):
    monkeypatch.chdir(shards)
    name = "shards-000000.tar"
    source = open_sources([name, f"./{name}", str(shards / name)])
    assert isinstance(source, ImageSource)
    assert len(source) == 4
    assert "2 tar files are named twice; they are counted once" in caplog.text


@pytest.mark.parametrize("cut", [-1024 * 10 - 100, 700, 100, 0])
def test_a_truncated_tar_is_a_one_line_error(tmp_path, cut):
    path = tmp_path / "x.tar"
    make_tar(path, [("a.png", png(1)), ("b.png", bytes(20_000))])
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"^[^\n]*x.tar cannot be read as an uncompressed tar file"):
        open_source(str(path))


def test_missing_and_compressed_shards_are_named(shards):
    with pytest.raises(DataError, match=r"no tar file .*shards-000003.tar \(2 of 5 are missing\)"):
        open_source(str(shards / "shards-{000000..000004}.tar"))
    with pytest.raises(DataError, match="range with at most"):
        open_source(str(shards / "shards-{000009..000004}.tar"))
    make_tar(shards / "z.tar", samples(0, 2), "w:gz")
    with pytest.raises(DataError, match=r"z.tar cannot be read .*; copy .* or name it .tar.gz if"):
        open_source(str(shards / "z.tar"))


def test_a_tar_that_shrinks_while_it_is_read_gives_broken_images(shards, monkeypatch):
    path = shards / "shards-000000.tar"
    source = open_source(str(path))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BrokenImageError, match=r"000.tar/0001.png: .* truncated; was it replaced"):
        source[1]
    monkeypatch.setattr(members, "MAX_IMAGE_BYTES", 9)
    with pytest.raises(BrokenImageError, match=r"\d+ bytes: expected at most 9"):
        source[1]


# Streams.


@pytest.fixture
def compressed(tmp_path):
    for number, suffix in enumerate(("tar.gz", "tgz", "tar.bz2", "tar.xz")):
        mode = {"tgz": "w:gz"}.get(suffix, f"w:{suffix[4:]}")
        files = samples(4 * number, 4 * number + 4)
        make_tar(tmp_path / f"s{number}.{suffix}", files, mode)
    return tmp_path


def test_compressed_shards_are_a_stream_that_resumes_from_any_place(compressed):
    stream = open_source(str(compressed / "*.t*"))
    assert isinstance(stream, ImageStream)
    assert not isinstance(stream, ImageSource)
    assert stream.num_parts == 4
    rows = [(shade(image(as_rgb)), state) for image, state in stream.read(state=None)]
    assert [number for number, _ in rows] == list(range(16))
    again = pickle.loads(pickle.dumps(stream))
    for place, (_, state) in enumerate(rows, 1):
        rest = [shade(image(as_rgb)) for image, _ in again.read(state=state)]
        assert rest == list(range(place, 16))


def test_a_stream_is_split_by_process(compressed):
    parts = [open_source(str(compressed / "*.t*"), rank=rank, world_size=2) for rank in range(2)]
    found = [[shade(image(as_rgb)) for image, _ in part.read(state=None)] for part in parts]
    assert found == [[0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]]
    assert parts[0].fingerprint() == parts[1].fingerprint()
    with pytest.raises(DataError, match="4 tar files are fewer than 5 processes"):
        open_source(str(compressed / "*.t*"), rank=0, world_size=5)


def test_images_with_one_key_are_not_collected_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_stream, "_MAX_SAMPLE", 2)
    files = [(f"x.{number}.png", png(number)) for number in range(9)]
    stream = open_source(make_tar(tmp_path / "x.tar.gz", files, "w:gz"))
    rows = [(shade(image(as_rgb)), state) for image, state in stream.read(state=None)]
    assert [number for number, _ in rows] == list(range(9))
    assert [shade(i(as_rgb)) for i, _ in stream.read(state=rows[4][1])] == [5, 6, 7, 8]


def test_broken_images_and_damaged_files_of_a_stream(tmp_path, monkeypatch):
    files = [("a.png", b"rubbish"), ("b.png", b""), ("c.png", bytes(500)), ("d.png", png(4))]
    path = tmp_path / "x.tar.gz"
    stream = open_source(make_tar(path, files, "w:gz"))
    monkeypatch.setattr(tar_stream, "MAX_IMAGE_BYTES", 400)
    *broken, good = [image for image, _ in stream.read(state=None)]
    for image, reason in zip(
        broken, ("a.png: Unid", "b.png: 0 bytes", "c.png: 500 b"), strict=True
    ):
        with pytest.raises(BrokenImageError, match=reason):
            image(as_rgb)
    assert shade(good(as_rgb)) == 4
    for content in (path.read_bytes()[:150], b"", b"<html>"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"^[^\n]*x.tar.gz cannot be read completely: [^\n]*$"):
            list(stream.read(state=None))
