"""ExecuTorch programs, run by its own runtime; skipped where it is missing."""

import importlib.util

import pytest
import torch

from pcd_hub import WeightError
from pcd_hub.weights.formats import executorch_files
from pcd_hub.weights.formats.graphs import graph_of
from pcd_hub.weights.load import read_weight
from tests.weights.formats.test_export import SIZES, close, export, features, source

pytestmark = pytest.mark.filterwarnings("default")  # of executorch
needs_executorch = pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None, reason="executorch is missing"
)


@needs_executorch
@torch.no_grad()
def test_a_program_has_timms_feature_maps_at_other_sizes_within_its_bounds(tmp_path):
    from executorch.runtime import Runtime

    weight = source(tmp_path, "test_resnet")
    folder = export(weight, "executorch", tmp_path, max_size=192)
    (file,) = folder.glob("*.pte")
    program = Runtime.get().load_program(file)
    forward = program.load_method("forward")
    for size in (*SIZES, (4, 3, 192, 128)):
        images = torch.rand(size)
        expected = features(weight, images, features_only=True)
        for one, other in zip(forward.execute([images]), expected, strict=True):
            assert close(one, other)
    text = (folder / "README.md").read_text()
    assert "Batch 1 to 4, height and width 64 to 192 px, multiples of 32;" in text
    assert "the XNNPACK backend." in text
    assert "| measured difference | largest " in text


def test_a_network_that_does_not_round_up_takes_any_size(tmp_path):
    graph = graph_of(read_weight(source(tmp_path)), pooled=False)
    exported, sizes = executorch_files._export(graph, 192)
    assert sizes == "height and width 64 to 192 px"
    images = torch.rand(1, 3, 101, 67)
    for one, other in zip(exported.module()(images), graph.network(images), strict=True):
        assert close(one, other)


@needs_executorch
@torch.no_grad()
def test_a_pooled_program_has_timms_embedding(tmp_path):
    from executorch.runtime import Runtime

    weight = source(tmp_path, "test_resnet")
    (file,) = export(weight, "executorch", tmp_path, pooled=True).glob("*.pte")
    images = torch.rand(SIZES[1])
    program = Runtime.get().load_program(file)
    (found,) = program.load_method("forward").execute([images])
    assert close(found, features(weight, images))


@needs_executorch
def test_a_program_with_other_values_is_refused(tmp_path, monkeypatch):
    right = executorch_files._load
    monkeypatch.setattr(
        executorch_files, "_load", lambda file: lambda images: right(file)(images + 0.01)
    )
    with pytest.raises(WeightError, match="the ExecuTorch graph computes other values"):
        export(source(tmp_path, "test_resnet"), "executorch", tmp_path)
    assert not (tmp_path / "executorch").exists()


def test_the_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightError, match=r"needs executorch.*pip install \"\.\[executorch\]"):
        export(source(tmp_path, "test_resnet"), "executorch", tmp_path)
