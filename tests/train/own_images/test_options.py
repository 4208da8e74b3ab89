"""Short options stand for longer ones."""

from pcd_hub.train.own_images.options import with_long_options


def test_short_options_stand_for_long_ones():
    typed = ["own_images", "--hours=2", "--run.seed", "3", "--hours", "4"]
    expected = ["own_images", "--run.hours=2", "--run.seed", "3", "--run.hours", "4"]
    assert with_long_options(typed) == expected
