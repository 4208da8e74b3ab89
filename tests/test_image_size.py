import pytest

from pcd_hub.image_size import format_size, height_width, simplest
from pcd_hub.train.configs import fields


def test_one_number_is_height_and_width():
    assert height_width(96) == height_width([96, 96]) == (96, 96)
    assert height_width((96, 160)) == fields.height_width([96, 160]) == (96, 160)
    with pytest.raises(ValueError, match="unpack"):
        height_width((1, 2, 3))


def test_a_square_becomes_one_number():
    assert (simplest((96, 96)), simplest(96), simplest([96, 160])) == (96, 96, (96, 160))


def test_sizes_in_messages():
    assert [format_size(size) for size in (96, (96, 160), [96, 160])] == [
        "96",
        "96 x 160",
        "96 x 160",
    ]
