"""A survey counts what is there, and refuses what cannot be trained on before the first step."""

import json
import shutil
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pcd_hub.data.multiband.reading import BandReader
from pcd_hub.data.multiband.source import BandSource
from pcd_hub.data.scenes import render_scene
from pcd_hub.data.sources.open import open_source
from pcd_hub.data.survey.duplicates import MAX_HASH_BITS, near_pairs
from pcd_hub.data.survey.result import FEW_IMAGES, MIN_IMAGES
from pcd_hub.data.survey.survey import survey
from pcd_hub.errors import DataError


def scene(number, size=(96, 96)):
    return Image.fromarray(render_scene(0, number, size=96).image).resize(size)


@pytest.fixture
def photos(tmp_path):
    """Twelve different JPEGs of 120 x 96 pixels."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(12):
        scene(number, (120, 96)).save(folder / f"{number:02}.jpg", quality=90)
    return folder


def look(folder, **options):
    return survey(open_source(str(folder)), **options)


def test_sizes_and_copies_are_counted(photos):
    scene(20, (200, 150)).save(photos / "large.png")
    shutil.copy(photos / "03.jpg", photos / "same_03.jpg")
    shutil.copy(photos / "03.jpg", photos / "again_03.jpg")
    Image.open(photos / "05.jpg").save(photos / "small_05.jpg", quality=60)
    found = look(photos)
    assert (found.num_images, found.num_sampled, found.num_compared) == (16, 16, 16)
    assert (found.smallest_side, found.short_side, found.largest_side) == (96, 96, 150)
    assert (found.num_exact_copies, found.num_near_copies, found.num_broken) == (2, 1, 0)
    assert {frozenset(pair) for pair in found.examples} >= {frozenset({"05.jpg", "small_05.jpg"})}
    text = found.describe()
    assert text.startswith("16 images, short side 96 px (96 to 150), 2 exact copies, 1 near copies")
    assert "03.jpg" in text
    assert json.loads(json.dumps(found.as_json()))["num_images"] == 16


def test_a_sample_is_named_as_such(photos):
    found = look(photos, max_images=8)
    assert (found.num_sampled, found.num_compared) == (8, 12)
    assert "(sample of 8: 96 to 96)" in found.describe()


def test_too_few_images_are_refused_before_any_is_read(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(b"not read")
    message = f"--data.source has 3 images: expected at least {MIN_IMAGES}, and {FEW_IMAGES} or"
    with pytest.raises(DataError, match=message):
        look(tmp_path)


def test_one_image_many_times_is_refused(tmp_path):
    scene(0).save(tmp_path / "000.png")
    for number in range(1, 100):
        shutil.copy(tmp_path / "000.png", tmp_path / f"{number:03}.png")
    with pytest.raises(DataError, match="^100 files hold 1 distinct image: expected at least 8"):
        look(tmp_path)


def test_only_broken_files_are_refused_with_the_first_reason(photos):
    for path in photos.iterdir():
        path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(DataError, match=r"^none of 12 images can be decoded, .*\.jpg \(OSError: "):
        look(photos)


def test_more_broken_images_than_a_run_accepts_are_refused(photos):
    (photos / "03.jpg").write_bytes(b"<html>")
    with pytest.raises(DataError, match="1 of 12 images cannot be read, expected at most 1%"):
        look(photos)


def test_a_few_broken_images_are_counted(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(150):
        pixels = rng.integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).resize((32, 24)).save(tmp_path / f"{number:03}.png")
    (tmp_path / "077.png").write_bytes(b"<html>")
    found = look(tmp_path)
    assert found.num_broken == 1
    assert "1 of 150 images cannot be decoded, and are skipped: " in found.cautions()[0]
    assert "077.png (UnidentifiedImageError" in found.cautions()[0]


@pytest.mark.parametrize(("largest", "caution"), [(4095, True), (65535, False)])
def test_files_that_use_12_of_16_bits_are_warned_of(tmp_path, largest, caution):
    rng = np.random.default_rng(0)
    for number in range(60):
        values = rng.integers(0, largest + 1, (24, 24)).astype(np.uint16)
        Image.fromarray(values).save(tmp_path / f"{number}.png")
    dark = [one for one in look(tmp_path).cautions() if "nearly black" in one]
    assert bool(dark) == caution


def noise(folder, count, side):
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = rng.integers(0, 255, (side, side, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.png")


def test_images_of_a_few_pixels_are_refused_and_of_8_px_are_named(tmp_path):
    (small := tmp_path / "small").mkdir()
    (tiny := tmp_path / "tiny").mkdir()
    noise(small, 10, 8)
    noise(tiny, 10, 7)
    found = look(small)
    assert (found.short_side, found.num_tiny) == (8, 0)
    assert "the images are smaller than their views: short side 8 px (median), " in "".join(
        found.cautions(view_side=96)
    )
    assert not any("smaller than their views" in one for one in found.cautions(view_side=8))
    with pytest.raises(DataError, match="the images are 7 px small .* at least 8 px"):
        look(tiny)


@pytest.mark.parametrize("kind", ["png", "jpg", "tif"])
def test_images_of_30000_px_are_broken_and_named_with_their_size(photos, kind):
    """The header alone is read: the image would have 2.5 GiB."""
    files = {
        "png": b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", struct.pack(">II5B", *SIDES, 8, 2, 0, 0, 0))
        + png_chunk(b"IDAT", b""),
        "jpg": (photos / "00.jpg")
        .read_bytes()
        .replace(struct.pack(">HH", 96, 120), struct.pack(">HH", *SIDES), 1),
        "tif": tiff_header(*SIDES),
    }
    (photos / f"huge.{kind}").write_bytes(files[kind])
    with pytest.raises(
        DataError, match=r"1 of 13 images cannot be read, .*huge.*(900000000|30000 x 30000)"
    ):
        look(photos)


SIDES = (30_000, 30_000)


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff_header(width, height):
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1)]
    tags += [(278, height), (279, width * height)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0)


def test_sources_without_files_are_compared_by_their_pixels(tmp_path):
    class InMemory:
        def __init__(self, images):
            self.images = images

        def __len__(self):
            return len(self.images)

        def __getitem__(self, index):
            return self.images[index]

        def read(self, index, to_image):
            return to_image(self.images[index])

        def name(self, index):
            return str(index)

        def fingerprint(self):
            return "in memory"

    images = [scene(number) for number in range(12)]
    found = survey(InMemory([*images, images[3], images[3]]))
    assert (found.num_compared, found.num_exact_copies, found.num_near_copies) == (14, 2, 0)
    assert set(found.examples[0]) < {"3", "12", "13"}


@pytest.mark.parametrize("distance", [1, 7])
def test_near_hashes_are_found_up_to_the_stated_distance(distance):
    rng = np.random.default_rng(distance)
    hashes = rng.integers(0, 2**63, 3000, np.uint64)
    flips = np.zeros(100, np.uint64)
    for row in range(100):
        for bit in rng.choice(64, distance, replace=False):
            flips[row] |= np.uint64(1) << np.uint64(bit)
    pairs = {tuple(pair) for pair in near_pairs(np.concatenate([hashes, hashes[:100] ^ flips]))}
    assert pairs >= {(row, 3000 + row) for row in range(100)}
    every = np.bitwise_count(hashes[:, None] ^ hashes[None]) <= MAX_HASH_BITS
    assert {pair for pair in pairs if max(pair) < 3000} == {
        tuple(pair) for pair in np.argwhere(np.triu(every, 1)).tolist()
    }


@pytest.mark.parametrize("change", ["recoded", "half", "png"])
def test_a_recoded_or_scaled_copy_is_near_and_another_scene_is_not(photos, change):
    for number in range(12):
        image = Image.open(photos / f"{number:02}.jpg")
        if change == "half":
            image = image.resize((60, 48), Image.Resampling.BICUBIC)
        options = {} if change == "png" else {"quality": 90}
        image.save(photos / f"copy_{number:02}.{'png' if change == 'png' else 'jpg'}", **options)
    assert look(photos).num_near_copies >= 11


@pytest.mark.parametrize("num_empty", [1, 3])
def test_images_that_differ_in_their_last_bands_are_not_copies(tmp_path, num_empty):
    rng = np.random.default_rng(0)
    for number in range(12):
        values = rng.integers(0, 256, (40, 40, num_empty + 1)).astype(np.uint8)
        values[..., :num_empty] = 0
        np.save(tmp_path / f"{number:02}.npy", values)
    (tmp_path / "12.npy").write_bytes((tmp_path / "03.npy").read_bytes())
    names = "".join(f"{number:02}.npy\n" for number in range(13))
    (tmp_path / "list.txt").write_text(names)
    bands = tuple(f"b{number}" for number in range(num_empty + 1))
    found = survey(BandSource(open_source(str(tmp_path / "list.txt")), BandReader(bands)))
    assert (found.num_exact_copies, found.num_near_copies) == (1, 0)
    assert {*found.examples[0]} == {"03.npy", "12.npy"}
    assert found.brightest > 250
