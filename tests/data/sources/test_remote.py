"""Sources behind URLs: in memory, and on a web server."""

import pickle

import fsspec
import pytest

from pcd_hub.data.decoding import BrokenImageError, as_rgb
from pcd_hub.data.sources.open import ImageStream, open_source
from pcd_hub.data.sources.remote import shown
from pcd_hub.errors import DataError
from tests.data.sources.archives.test_tars import make_tar, samples
from tests.data.sources.archives.test_zips import make_zip, png, shade


@pytest.fixture
def bucket():
    """A folder of the file system in memory."""
    system = fsspec.filesystem("memory")
    for name, content in {
        "a/2.png": png(2),
        "a/1.png": png(1),
        "3.png": png(3),
        ".hidden/9.png": png(9),
        "a/._1.png": png(9),
        "notes.md": b"x",
        "list.txt": b"a/1.png\nmemory://bucket/3.png\n",
        "broken.jpeg": b"<html>",
        "empty.png": b"",
    }.items():
        system.pipe_file(f"/bucket/{name}", content)
    yield "memory://bucket"
    system.rm("/bucket", recursive=True)


def shades(source) -> list:
    found = []
    for index in range(len(source)):
        try:
            found.append(shade(source[index]))
        except BrokenImageError as error:
            found.append(str(error))
    return found


def test_a_remote_folder_is_listed_and_read(bucket):
    source = open_source(bucket)
    names = ["3.png", "a/1.png", "a/2.png", "broken.jpeg", "empty.png"]
    assert [source.name(index) for index in range(len(source))] == names
    first, second, third, broken, empty = shades(pickle.loads(pickle.dumps(source)))
    assert (first, second, third) == (3, 1, 2)
    assert broken.startswith("memory://bucket/broken.jpeg: UnidentifiedImageError")
    assert empty == "memory://bucket/empty.png: the file is empty"


def test_the_fingerprint_of_a_remote_folder_changes_with_names_and_sizes(bucket):
    prints = {open_source(bucket).fingerprint()}
    system = fsspec.filesystem("memory")
    system.pipe_file("/bucket/3.png", b"other")
    prints.add(open_source(bucket).fingerprint())
    system.mv("/bucket/3.png", "/bucket/4.png")
    prints.add(open_source(bucket).fingerprint())
    assert len(prints) == 3


def test_a_remote_pattern_and_a_remote_list(bucket):
    assert shades(open_source(f"{bucket}/a/*.png")) == [1, 2]
    assert shades(open_source(f"{bucket}/list.txt")) == [1, 3]
    with pytest.raises(DataError, match="nothing matches memory://bucket/x"):
        open_source(f"{bucket}/x*.png")


def test_remote_failures_are_one_line(bucket):
    with pytest.raises(DataError, match=r"^memory://nowhere[^\n]*$"):
        open_source("memory://nowhere")
    with pytest.raises(DataError, match="unknown kind of URL 'foo'"):
        open_source("foo://x")
    with pytest.raises(DataError, match="memory://bucket/nowhere.txt cannot be read: FileNotFound"):
        open_source(f"{bucket}/nowhere.txt")
    source = open_source(bucket)
    fsspec.filesystem("memory").rm("/bucket/3.png")
    with pytest.raises(BrokenImageError, match="memory://bucket/3.png: FileNotFoundError"):
        source[0]
    fsspec.filesystem("memory").pipe_file("/bucket/3.png", png(3))


def test_a_missing_library_is_named(monkeypatch):
    def missing(scheme):
        raise ImportError(f"no library for {scheme}")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(DataError, match=r"s3:// is not installed; pip install s3fs"):
        open_source("s3://bucket/photos")
    with pytest.raises(DataError, match=r"gs:// is not installed; pip install gcsfs"):
        open_source("gs://bucket/photos.zip")
    with pytest.raises(DataError, match=r"x:// is not installed; ImportError: no library for x"):
        open_source("x://bucket/a.tar")


def test_a_password_or_token_is_not_shown():
    assert shown("https://ann:pw@host/a/b.zip?token=x") == "https://host/a/b.zip"


def test_file_urls_are_paths(tmp_path):
    (tmp_path / "a.png").write_bytes(png(5))
    source = open_source(f"file://{tmp_path}")
    assert source.fingerprint() == open_source(str(tmp_path)).fingerprint()


def test_a_folder_a_zip_and_shards_on_a_web_server(web):
    folder, url = web
    (folder / "photos").mkdir()
    (folder / "photos" / "a.png").write_bytes(png(1))
    make_zip(folder / "x.zip", [(f"{n}.png", png(n)) for n in range(5)])
    make_tar(folder / "s-0.tar", samples(0, 3))
    make_tar(folder / "s-1.tar", samples(3, 6))
    assert shades(open_source(f"{url}/photos")) == [1]
    assert shades(open_source(f"{url}/x.zip?key=secret")) == list(range(5))
    stream = open_source(url + "/s-{0..1}.tar")
    assert isinstance(stream, ImageStream)
    rows = [(shade(image(as_rgb)), state) for image, state in stream.read(state=None)]
    assert [number for number, _ in rows] == list(range(6))
    assert [shade(i(as_rgb)) for i, _ in stream.read(state=rows[3][1])] == [4, 5]
    (folder / "s-1.tar").unlink()
    with pytest.raises(DataError, match=r"^http:[^\n]*/s-1.tar cannot be read completely: FileNot"):
        list(stream.read(state=None))
