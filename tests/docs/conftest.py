"""What a reader of the pages has: a folder of photographs, labelled images, and a Hub."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
from PIL import Image

import pcd_hub
from pcd_hub.train.configs.distill import DISTILL
from pcd_hub.train.own_images.python import distill
from pcd_hub.train.run_folder import provenance
from pcd_hub.weights import shipped
from tests.docs.commands import SMALL
from tests.evaluate.drawn_sets import draw_segmentation
from tests.hub.server import LoopbackHub
from tests.hub.surroundings import point_client_at, settle
from tests.weights.making import files_of

TOKEN = "hf_" + "a1B2" * 9
SHIPPED = shipped.FOLDER


@pytest.fixture
def readers_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the reader's folder the current one; the shipped weights are there as for a reader."""
    folder = tmp_path / "reader"
    rng = np.random.default_rng(0)
    for place in ("photos", "IMAGES"):
        (folder / place).mkdir(parents=True)
        for number in range(32):  # the fewest that calibrate int8
            pixels = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
            large = Image.fromarray(pixels).resize((80, 72), Image.Resampling.BICUBIC)
            large.save(folder / place / f"{number}.jpg")
    draw_segmentation(folder / "LABELLED")
    (folder / "RUN").mkdir()
    config = json.dumps(dataclasses.asdict(DISTILL["own_images"]))
    (folder / "RUN" / "config.json").write_text(config)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(shipped, "FOLDER", SHIPPED)
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))  # ultralytics writes settings there
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    return folder


@pytest.fixture(scope="session")
def timms_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return a repository of timm's, with random weights."""
    folder = tmp_path_factory.mktemp("timm")
    model = timm.create_model("resnet18.a1_in1k")
    timm.models.save_for_hf(model, folder, safe_serialization=True)
    return files_of(folder)


@pytest.fixture
def readers_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timms_files: dict[str, bytes]
) -> Iterator[LoopbackHub]:
    """A Hub with ``ORG/resnet18.pcd``, on which the reader may publish for ``ORG``."""
    with LoopbackHub(tmp_path / "hub") as hub:
        hub.add_repo("ORG/resnet18.pcd", files_of(SHIPPED / "resnet18.pcd"))
        hub.add_repo("timm/resnet18.a1_in1k", timms_files)
        hub.add_user("ann", token=TOKEN, orgs=("ORG",))
        point_client_at(hub, monkeypatch, token=TOKEN)
        yield hub
        settle()


def small_distill(*images: Any, hours: float | None = None, **arguments: Any) -> Any:
    """pcd_hub.distill as a page calls it, in seconds."""
    assert hours is None or hours > 0
    arguments.setdefault("teacher", "quickstart")
    groups = {name for name, value in arguments.items() if isinstance(value, dict)}
    small = {
        name: value
        for name, value in SMALL.items()
        if name not in arguments and name.partition(".")[0] not in groups
    }
    small = {"run.max_steps": 3} if "resume" in arguments else small
    arguments = {k: v for k, v in arguments.items() if "resume" not in arguments or k != "teacher"}
    return distill(*images, **{**small, **arguments})


@pytest.fixture
def reader(
    readers_folder: Path, readers_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """Return the names that the blocks of a page share, in the reader's folder.

    The code counts as committed, so that what it distils may be published.
    """
    clean = {"pcd_hub": pcd_hub.__version__, "commit": "c" * 40, "dirty": False}
    monkeypatch.setattr(provenance, "_checkout_state", lambda: clean)
    monkeypatch.setattr(pcd_hub, "distill", small_distill, raising=False)
    return {"__name__": "page", "pcd_hub": pcd_hub}
