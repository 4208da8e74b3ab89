import numpy as np
import torch
from PIL import Image

from pcd_hub.report.features import principal_colours, save_pca


def test_regions_of_one_feature_have_one_colour_and_others_another():
    maps = torch.zeros(2, 8, 4, 4)
    maps[:, 0] = 1.0
    maps[:, 1, :, 2:] = 3.0
    maps[1, 2, 2:] = 2.0
    colours = principal_colours(maps)
    assert colours.shape == (2, 3, 4, 4)
    assert colours.min() == 0
    assert colours.max() == 1
    assert torch.equal(colours[0, :, 0, 0], colours[0, :, 3, 1])
    assert (colours[0, :, 0, 0] - colours[0, :, 0, 3]).abs().max() > 0.5
    assert (colours[1, :, 0, 0] - colours[1, :, 3, 0]).abs().max() > 0.5


def test_the_scale_of_a_feature_does_not_matter_and_a_rerun_has_the_same_colours():
    maps = torch.randn(2, 16, 3, 3)
    torch.testing.assert_close(principal_colours(maps), principal_colours(7 * maps))


def test_two_channels_are_enough():
    colours = principal_colours(torch.randn(1, 2, 3, 3))
    assert colours.shape == (1, 3, 3, 3)
    assert not colours[:, 2].any()


def test_the_figure_has_images_above_the_feature_maps_of_each_model(tmp_path):
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    maps = {"teacher": torch.randn(2, 8, 4, 4), "student": torch.randn(2, 5, 2, 2)}
    save_pca(tmp_path / "pca.png", images, maps)
    sheet = np.asarray(Image.open(tmp_path / "pca.png"))
    assert sheet.shape == (3 * 32, 2 * 32, 3)
    assert (sheet[:32, 32:] == images[1].permute(1, 2, 0).numpy()).all()
    cell = sheet[64:80, :16].reshape(-1, 3)
    assert (cell == cell[0]).all(), "a location of the student's map is one square"
