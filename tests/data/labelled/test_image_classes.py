import pytest
from PIL import Image

from pcd_hub.data.labelled.image_classes import image_classes
from pcd_hub.data.sources.open import open_sources
from pcd_hub.errors import DataError


@pytest.fixture
def source(tmp_path):
    for name in ("cat/1.png", "dog/1.png", "dog/2.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    return open_sources((str(tmp_path / "images"),))


def write(tmp_path, text):
    (tmp_path / "index.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    return str(tmp_path / "index.csv")


def test_classes_come_from_a_csv_file(source, tmp_path):
    lines = ["\ufefffile,licence,class", 'dog/2.png,CC0,"a, b"', "other,x,y", "cat/1.png,,c"]
    found = image_classes(source, write(tmp_path, "\r\n".join([*lines, "dog/1.png,,c"])))
    assert found.classes == ("a, b", "c")
    assert found.labels == [1, 1, 0]


def test_classes_come_from_folders(source):
    found = image_classes(source, "folders")
    assert (found.labels, found.classes) == ([0, 1, 1], ("cat", "dog"))
    assert found.fingerprint() != found._replace(labels=[0, 0, 1]).fingerprint()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,class\ncat/1.png,c\n", r"has no class of dog/1.png \(2 of 3 images\)"),
        ("file,class\ncat/1.png,c\ndog/1.png,c\ndog/2.png,c\n", "has 1 class of these images"),
        ("path,class\n", "has the columns path, class, expected file and class"),
        ("", "has the columns none, expected"),
        (b"file,class\n\xff,c\n", "is no readable CSV file"),
        ('file,class\n"a,b\n', "is no readable CSV file"),
        ("file,class\na\n", "has no class of cat/1.png"),
        ("file,class\ncat/1.png, \ndog/1.png,c\ndog/2.png,d\n", "has no class of cat/1.png"),
    ],
)
def test_a_wrong_file_is_named(source, tmp_path, text, message):
    with pytest.raises(DataError, match=f"index.csv {message}"):
        image_classes(source, write(tmp_path, text))


class Stream:
    num_parts = 1

    def read(self, *, state):
        yield from ()

    def fingerprint(self):
        return ""


def test_a_missing_file_and_a_stream_are_named(source, tmp_path):
    with pytest.raises(DataError, match="nothing.csv is no readable CSV file"):
        image_classes(source, str(tmp_path / "nothing.csv"))
    with pytest.raises(DataError, match="a stream has no names"):
        image_classes(Stream(), "folders")
