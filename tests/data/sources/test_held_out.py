import pickle

import numpy as np
import pytest
from PIL import Image

from pcd_hub.data.sources.held_out import (
    MAX_IMAGES,
    MIN_SET,
    hash_images,
    hash_name,
    split_held_out,
    threshold,
)
from pcd_hub.data.sources.open import ImageSource, open_source


class Named:
    """Images with names and nothing else."""

    def __init__(self, names):
        self.names = list(names)

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        return self.read(index, lambda image: image)

    def read(self, index, to_image):
        return to_image(Image.new("RGB", (8, 8), (index % 256, 0, 0)))

    def name(self, index):
        return self.names[index]

    def fingerprint(self):
        return f"{len(self)} images"


def parts(names, share):
    training, held_out = split_held_out(Named(names), share=share)
    assert isinstance(training, ImageSource)
    assert isinstance(held_out, ImageSource)
    return [{each.name(index) for index in range(len(each))} for each in (training, held_out)]


def test_without_a_share_the_source_is_unchanged():
    source = Named(map(str, range(500)))
    training, held_out = split_held_out(source, share=0.0)
    assert training is source
    assert held_out is None


@pytest.mark.parametrize("count", [20, 50, 100, 300, 2_000, 5_000, 50_000])
def test_two_percent_are_held_out_more_of_a_small_set_and_at_most_128(count):
    training, held_out = parts([f"{n}.jpg" for n in range(count)], 0.02)
    assert training.isdisjoint(held_out)
    assert len(training) + len(held_out) == count
    expected = min(max(0.02 * count, min(24, 0.1 * count)), MAX_IMAGES)
    assert len(held_out) >= 2
    assert len(held_out) == pytest.approx(expected, abs=3 * expected**0.5)


@pytest.mark.parametrize("share", [0.02, 0.5])
def test_an_added_image_never_brings_a_training_image_into_the_held_out_part(share):
    names = [f"photos/{n}.jpg" for n in range(9_000)]
    before: set[str] = set()
    for count in (20, 21, 45, 100, 239, 240, 700, 1_300, 4_000, 9_000):
        training, held_out = parts(names[:count], share)
        assert before.isdisjoint(held_out), f"trained on before there were {count} images"
        before = training


def test_between_1300_and_6000_images_no_image_changes_its_part():
    names = [f"{n}.jpg" for n in range(6_000)]
    small, large = parts(names[:1_300], 0.02), parts(reversed(names), 0.02)
    assert small[0] < large[0]
    assert small[1] < large[1]


def test_at_least_two_images_are_held_out_whatever_their_hashes():
    assert threshold(np.linspace(0.5, 0.9, 20), share=0.02) == pytest.approx(0.5 + 0.4 / 19)


@pytest.mark.parametrize(
    ("source", "reason"),
    [(Named("abc" * 6), f"18 images are fewer than {MIN_SET}"), ("stream", "a stream")],
)
def test_small_sets_and_streams_have_no_held_out_part(source, reason, tmp_path, caplog):
    caplog.set_level("INFO")
    if source == "stream":
        import datasets

        table = datasets.Dataset.from_dict({"image": [Image.new("RGB", (8, 8))] * 30})
        table.to_parquet(tmp_path / "train.parquet")
        source = open_source(f"hf-stream:{tmp_path}")
    assert split_held_out(source, share=0.02) == (source, None)
    assert reason in caplog.text


def test_a_folder_is_split_by_the_paths_below_it(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        for number in range(40):
            Image.new("RGB", (8, 8)).save(tmp_path / folder / f"{number}.png")
    found = [split_held_out(open_source(str(tmp_path / f)), share=0.1)[1] for f in ("one", "two")]
    first, second = ([each.name(i) for i in range(len(each))] for each in found if each)
    assert first == second == sorted(f"{n}.png" for n in range(40) if hash_name(f"{n}.png") <= 0.1)


def test_the_parts_read_their_images_and_state_share_and_source():
    source = Named(map(str, range(200)))
    training, held_out = split_held_out(source, share=0.02)
    assert isinstance(held_out, ImageSource)
    assert training.fingerprint() == f"200 images, 0.02 held out ({len(held_out)} images)"
    assert (
        held_out.fingerprint() == f"200 images, the part of 0.02 held out ({len(held_out)} images)"
    )
    for part in (training, pickle.loads(pickle.dumps(held_out))):
        assert isinstance(part, ImageSource)
        for index in (0, len(part) - 1):
            assert part[index].getpixel((0, 0)) == (int(part.name(index)), 0, 0)


def test_images_without_names_are_split_by_index():
    training, held_out = split_held_out(open_source("scenes:300"), share=0.02)
    assert isinstance(held_out, ImageSource)
    assert len(training) + len(held_out) == 300
    assert np.array_equal(
        np.asarray(held_out[0]), np.asarray(open_source("scenes:300")[int(held_out.name(0))])
    )


def test_images_of_one_name_in_many_folders_are_held_out_one_by_one(tmp_path):
    for folder in range(60):
        (tmp_path / f"p{folder:03}").mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / f"p{folder:03}" / "image.png")
    training, held_out = split_held_out(open_source(f"{tmp_path}/*"), share=0.02)
    assert isinstance(held_out, ImageSource)
    assert isinstance(training, ImageSource)
    assert 2 <= len(held_out) <= 15
    assert len(training) == 60 - len(held_out)


def test_repeated_names_do_not_change_the_part_of_the_first():
    names = [f"{number}.jpg" for number in range(300)]
    once = hash_images(Named(names))
    twice = hash_images(Named([*names, *names]))
    assert (twice[:300] == once).all()
    assert len(set(twice)) == 600
