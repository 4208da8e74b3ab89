"""Images of a labelled set among unlabelled images."""

from functools import partial

import numpy as np
import pytest
from PIL import Image

from pcd_hub.data.decoding import as_rgb, decode
from pcd_hub.data.sources.files import ImageFiles
from pcd_hub.data.sources.open import open_source
from pcd_hub.data.survey import duplicates
from pcd_hub.data.survey.shared import LabelledPicture, equal_files, find_shared


@pytest.fixture
def test_images(tmp_path):
    """Three images of a test split: soft random colours, which survive JPEG."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(3):
        small = Image.fromarray(rng.integers(0, 256, (3, 4, 3)).astype(np.uint8))
        path = tmp_path / "val" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        small.resize((180, 160), Image.Resampling.BICUBIC).save(path)
        found.append(LabelledPicture(name=str(path), load=partial(decode, path, str(path), as_rgb)))
    return found


@pytest.fixture
def pool(tmp_path):
    """A folder of other images."""
    rng = np.random.default_rng(1)
    folder = tmp_path / "pool"
    folder.mkdir()
    for number in range(4):
        small = Image.fromarray(rng.integers(0, 256, (3, 4, 3)).astype(np.uint8))
        small.resize((180, 160), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


def test_none_is_shared_and_all_are_compared(test_images, pool):
    found = find_shared(test_images, open_source(str(pool)))
    assert (found.equal, found.near, found.num_compared) == ((), (), 4)


def test_an_equal_file_is_found_whatever_its_name(test_images, pool):
    (pool / "holiday.png").write_bytes((pool.parent / "val" / "1.png").read_bytes())
    found = find_shared(test_images, open_source(str(pool)))
    assert found.equal == ((test_images[1].name, "holiday.png"),)


def test_files_of_another_size_than_all_labelled_images_are_not_read(tmp_path, monkeypatch):
    for name, content in (("ours", b"1234"), ("like", b"5678"), ("a", b"12"), ("b", b"34")):
        (tmp_path / f"{name}.png").write_bytes(content)
    read, hash_head = [], duplicates._hash_head
    monkeypatch.setattr(
        duplicates, "_hash_head", lambda path: read.append(path.stem) or hash_head(path)
    )
    ours = LabelledPicture(name=str(tmp_path / "ours.png"), load=Image.Image)
    source = ImageFiles(["like.png", "a.png", "b.png"], root=tmp_path)
    assert equal_files([ours], source) == ()
    assert sorted(read) == ["like", "ours"]


def test_equal_pixels_in_another_format_are_equal(test_images, pool):
    Image.open(test_images[2].name).save(pool / "again.bmp")
    found = find_shared(test_images, open_source(str(pool)))
    assert found.equal == ((test_images[2].name, "again.bmp"),)
    assert found.near == ()


def test_a_smaller_jpeg_is_a_near_copy(test_images, pool):
    Image.open(test_images[0].name).resize((90, 80)).save(pool / "small.jpg", quality=90)
    found = find_shared(test_images, open_source(str(pool)))
    assert found.equal == ()
    assert found.near == ((test_images[0].name, "small.jpg"),)


def test_broken_images_are_skipped(test_images, pool):
    (pool / "broken.png").write_bytes(b"no picture")
    assert find_shared(test_images, open_source(str(pool))).num_compared == 4
