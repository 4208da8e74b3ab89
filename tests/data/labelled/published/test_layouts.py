"""The layouts of the published sets are those that the readers know."""

import numpy as np
import pytest

from pcd_hub.data.labelled.classification import open_classification
from pcd_hub.data.labelled.published.layouts import (
    read_members,
    write_dtd,
    write_eurosat,
    write_oxford_pets,
)
from pcd_hub.data.labelled.segmentation import open_segmentation
from pcd_hub.errors import DataError
from tests.data.labelled.published.drawn_archives import (
    BREEDS,
    LAND,
    TEXTURES,
    dtd_archives,
    eurosat_archives,
    pets_archives,
    tar_gz,
)


@pytest.fixture
def written(tmp_path):
    """Write archives with a function, and return its folder."""

    def written(write, archives):
        files = [tmp_path / name for name in archives]
        for file in files:
            file.write_bytes(archives[file.name])
        write(files, tmp_path / "set")
        return tmp_path / "set"

    (tmp_path / "set").mkdir()
    return written


def test_pets_have_twenty_training_images_of_each_breed_and_the_published_test_split(written):
    folder = written(write_oxford_pets, pets_archives())
    train, test = (open_segmentation(str(folder), split) for split in ("train", "test"))
    assert train.classes == test.classes == ("pet", "background")
    names = {train.image_name(index).rpartition("/")[2] for index in range(len(train))}
    assert names == {f"{breed}_{number}.jpg" for breed in BREEDS for number in range(3, 23)}
    assert len(test) == 6


def test_pets_are_class_0_the_background_1_and_their_border_is_ignored(written):
    folder = written(write_oxford_pets, pets_archives())
    test = open_segmentation(str(folder), "test")
    mask = np.asarray(test.mask(0))
    assert mask[0, 0] == 1
    assert mask[5, 5] == 255
    assert mask[12, 12] == 0


def test_eurosat_has_two_drawn_splits_without_a_common_image(written):
    folder = written(write_eurosat, eurosat_archives())
    train, test = (open_classification(str(folder), split) for split in ("train", "test"))
    assert train.classes == test.classes == LAND
    assert np.bincount(train.labels).tolist() == np.bincount(test.labels).tolist() == [200, 200]
    files = [{file.name for file in (folder / split).rglob("*.jpg")} for split in ("train", "test")]
    assert not files[0] & files[1]
    # Of 410 names, places 0, 199, 200, 399 and 400 in the order of their SHA-256.
    assert {"Forest_100.jpg", "Forest_77.jpg"} < files[1]
    assert {"Forest_149.jpg", "Forest_384.jpg"} < files[0]
    assert "Forest_374.jpg" not in files[0] | files[1]


def test_textures_have_the_first_published_partition(written):
    folder = written(write_dtd, dtd_archives())
    train, test = (open_classification(str(folder), split) for split in ("train", "test"))
    assert train.classes == test.classes == TEXTURES
    assert (len(train), len(test)) == (8, 6)
    assert (folder / "test/banded/banded_0006.jpg").is_file()
    assert not list(folder.rglob("*_0004.jpg"))  # of the validation split


def test_a_missing_file_and_a_link_in_its_place_are_refused(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(tar_gz({"./images/b.jpg": b"1", "images/c.jpg": b"2"}))
    found = dict(read_members(tmp_path / "a.tar.gz", ["images/b.jpg"]))
    assert found == {"images/b.jpg": b"1"}
    with pytest.raises(DataError, match=r"a.tar.gz has no images/d.jpg \(2 of 3 files are missing"):
        list(read_members(tmp_path / "a.tar.gz", ["images/b.jpg", "images/d.jpg", "images/e.jpg"]))
