import timm
import torch

from pcd_hub.data.scenes import render_scene
from pcd_hub.evaluate.models import EvaluatedModel
from pcd_hub.evaluate.scene_probe import (
    TEST_SEED,
    TRAIN_SEED,
    labelled_scenes,
    probe_on_scenes,
    scene_measurement,
    scene_mosaics,
)
from pcd_hub.evaluate.segmentation import LinearProbe


def test_mosaics_keep_the_scenes_scale_and_order():
    mosaic = scene_mosaics(2, tiles=2)
    assert mosaic.shape == (2, 3, 192, 192)
    for number, (row, column) in {1: (0, 96), 2: (96, 0)}.items():
        scene = torch.from_numpy(render_scene(TEST_SEED, 4 + number, size=96).image)
        assert torch.equal(
            mosaic[1, :, row : row + 96, column : column + 96], scene.permute(2, 0, 1)
        )
    assert scene_mosaics(3, tiles=1, size=64).shape == (3, 3, 64, 64)


def test_the_protocol_states_the_pixels_of_the_loss(monkeypatch):
    strides, run = [], LinearProbe.run

    def short(probe, *, label_stride):
        strides.append(label_stride)
        return run(probe, steps=2, label_stride=label_stride)

    monkeypatch.setattr(LinearProbe, "run", short)
    model = timm.create_model("test_resnet", num_classes=0)
    student = EvaluatedModel(name="student", model=model, mean=(0.5,) * 3, std=(0.25,) * 3)
    train, test = labelled_scenes(TRAIN_SEED, 4), labelled_scenes(TEST_SEED, 4)
    results = probe_on_scenes([student], train, test)
    measured = scene_measurement(results, subject="student", num_scenes=4, command="")
    (stride,) = strides
    assert f"loss at 1 of {stride} x {stride} pixels" in measured.protocol
