"""The command line of the figures of features."""

import numpy as np
from PIL import Image

from pcd_hub.train.frozen import feature_figures


def test_feature_maps_and_receptive_fields_are_drawn(tmp_path, tiny_teacher, capsys):
    out = tmp_path / "out"
    feature_figures.main(
        [
            "--data.source=scenes:2",
            "--data.image-size=64",
            f"--teacher.source=local-dir:{tiny_teacher}",
            "--models",
            "random:test_resnet",
            "random:resnet18_mhsa",
            f"--run.output-dir={out}",
        ]
    )
    with Image.open(out / "pca.png") as picture:
        assert picture.size == (128, 64 * 4), "images, teacher, two models"
    with Image.open(out / "receptive_field.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("L")))) > 3
    assert capsys.readouterr().out.count("half of the receptive field within") == 2
