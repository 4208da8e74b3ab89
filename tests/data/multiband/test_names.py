import pytest

from pcd_hub.data.multiband.names import (
    RGB,
    check_bands,
    colour_places,
    teacher_places,
    weight_suffix,
)
from pcd_hub.errors import ConfigError


def test_the_teacher_gets_its_colours_whatever_their_order():
    assert teacher_places(("nir", "blue", "green", "red")) == (3, 2, 1)
    assert teacher_places(RGB) == (0, 1, 2)
    assert teacher_places(("sar",)) == (0, 0, 0)
    assert teacher_places(("B2", "B3", "B8"), ("B8", "B3", "B2")) == (2, 1, 0)


@pytest.mark.parametrize(
    ("bands", "shown", "message"),
    [
        (("B2", "B3"), (), "the teacher takes red, green and blue; .* --teacher.bands B2 B3 B2"),
        (("B2", "B3"), ("B2", "B4", "B3"), "--teacher.bands B2 B4 B3: expected three of"),
        (("B2", "B3"), ("B2", "B3"), "--teacher.bands B2 B3: expected three of"),
    ],
)
def test_bands_that_no_teacher_knows_are_refused_with_the_remedy(bands, shown, message):
    with pytest.raises(ConfigError, match=message):
        teacher_places(bands, shown)


@pytest.mark.parametrize("bands", [(), ("a", "a"), ("a", ""), ("a b",), tuple(map(str, range(65)))])
def test_bands_need_one_name_each(bands):
    with pytest.raises(ConfigError, match="--data.bands"):
        check_bands(bands)


def test_names_with_commas_are_refused_with_the_remedy():
    with pytest.raises(ConfigError, match="separated by spaces, as in --data.bands red green nir"):
        check_bands(("red,green", "nir"))


def test_colours_and_names_of_weights():
    assert colour_places(("nir", "red", "green")) == ()
    assert [weight_suffix(b) for b in (RGB, ("gray",), (*RGB, "nir"))] == ["", "_1band", "_4bands"]
