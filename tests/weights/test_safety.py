import json
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pcd_hub.errors import WeightError
from pcd_hub.files import strict_json
from pcd_hub.models.entries import STOCK_ARCHITECTURES, entry_cfg
from pcd_hub.weights import safety, tensors
from tests.stress.fuzz_targets import JSON_VALUES, damaged, headers
from tests.weights.hostile_files import HOSTILE, NEWER, Valid, encoded, entry, files_of, packed
from tests.weights.making import exported

WHAT = "ORG/some.pcd@0123abc: a file"
ARCHITECTURES = ("test_resnet", "test_vit", "resnet18_mhsa")


@pytest.fixture(scope="module")
def exports(tmp_path_factory) -> dict[str, Valid]:
    root = tmp_path_factory.mktemp("exports")
    return {name: files_of(exported(root / name, name, image_size=160)) for name in ARCHITECTURES}


@pytest.fixture(scope="module")
def valid(exports) -> Valid:
    return exports["test_vit"]


@pytest.mark.parametrize("case", HOSTILE, ids=[case.name for case in HOSTILE])
def test_a_hostile_input_is_refused_in_one_short_line(case, valid):
    with pytest.raises(WeightError, match=case.reason) as caught:
        case.check(case.build(valid), what=WHAT)
    message = str(caught.value)
    assert message.startswith(WHAT)
    assert message.isprintable()
    assert message.isascii()
    assert len(message) < 450


@pytest.mark.parametrize("case", NEWER, ids=[case.name for case in NEWER])
def test_what_a_newer_version_may_add_is_accepted(case, valid):
    case.check(case.build(valid), what=WHAT)


_EVENTS: list[str] = []
_WATCHING: list[bool] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    kinds = ("open", "os.", "shutil.", "subprocess.", "socket.", "pickle.", "import", "exec")
    if _WATCHING and event.startswith(kinds):
        _EVENTS.append(f"{event} {arguments}"[:200])


def test_no_hostile_input_takes_time_or_touches_the_machine(valid, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    built = [(case, case.build(valid)) for case in [*HOSTILE, *NEWER]]
    for case in (case for case in HOSTILE if case.name.startswith("fit")):
        with pytest.raises(WeightError):  # timm imports some parts only when it builds
            case.check(case.build(valid), what=WHAT)
    sys.addaudithook(_watch)
    slow = []
    for case, hostile in built:
        _WATCHING.append(True)
        start = time.process_time()
        try:
            case.check(hostile, what=WHAT)
        except WeightError:
            pass
        finally:
            seconds = time.process_time() - start
            _WATCHING.clear()
        if seconds > 10:
            slow.append((case.name, seconds))
    assert slow == []
    assert _EVENTS == []
    assert list(tmp_path.iterdir()) == []


# What pcd_hub writes passes.


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_export_passes_every_check(exports, architecture):
    weights, config, manifest = exports[architecture]
    assert safety.check_config(encoded(config), what=WHAT) == config
    assert safety.check_manifest(encoded(manifest), what=WHAT) == manifest
    safety.check_file_names((file["path"] for file in manifest["files"]), what=WHAT)
    shapes = tensors.check_header(weights, what=WHAT)
    assert shapes == tensors.check_header(memoryview(weights), what=WHAT)
    loaded = tensors.load_tensors(weights, what=WHAT)
    expected = safetensors.torch.load(weights)
    assert loaded.keys() == expected.keys() == shapes.keys()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)
    assert all(tuple(loaded[key].shape) == shapes[key] for key in expected)
    model_args = config.get("model_args", {})
    needed = tensors.needed_shapes(config["architecture"], model_args, what=WHAT)
    tensors.check_size(len(weights), needed, what=WHAT)
    tensors.check_fit(shapes, needed, what=WHAT)


@pytest.mark.parametrize(
    "architecture", [*STOCK_ARCHITECTURES, "crossvit_9_240", "volo_d1_224", "xcit_nano_12_p8_224"]
)
def test_the_config_of_every_entry_passes(valid, architecture):
    ours = {"architecture": architecture, "tag": "pcd_mydata", "custom_load": False}
    cfg = {**entry_cfg(architecture).to_dict(remove_source=True), **ours}
    config = {**valid.config, "architecture": architecture, "pretrained_cfg": cfg}
    safety.check_config(encoded(config), what=WHAT)


def test_every_file_of_a_finished_weight_passes():
    names = ["model.safetensors", "config.json", "pcd_manifest.json", "README.md", "LICENSE"]
    safety.check_file_names([*names, "LICENSE.md", "LICENSE.txt", "pca_0-a.png"], what=WHAT)


@pytest.mark.usefixtures("jaxtyping_off")
@pytest.mark.parametrize("name", [None, 1, b"config.json", ["config.json"]])
def test_a_name_that_is_no_string_is_refused(name):
    with pytest.raises(WeightError, match="not a file of a weight"):
        safety.check_file_names([name], what=WHAT)


def test_every_allowed_dtype_and_an_empty_tensor_load():
    dtypes = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64]
    dtypes += [torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
    written = {str(dtype): torch.ones(2, 3).to(dtype) for dtype in dtypes}
    written |= {"scalar": torch.tensor(7), "empty": torch.empty(0, 5), "no": torch.empty(0).bool()}
    read = tensors.load_tensors(safetensors.torch.save(written, {"format": "pt"}), what=WHAT)
    assert read.keys() == written.keys()
    for name, value in written.items():
        assert read[name].dtype == value.dtype
        assert torch.equal(read[name], value)


def test_the_time_to_read_grows_with_the_number_of_tensors_and_not_with_its_square():
    def seconds(count):
        raw = packed({f"t{i}": entry("U8", [0], 0, 0) for i in range(count)})
        start = time.process_time()
        assert len(tensors.load_tensors(raw, what=WHAT)) == count
        return time.process_time() - start

    few = min(seconds(1500) for _ in range(3))
    assert seconds(15_000) < 50 * few  # ten times is linear, a hundred times the square


def test_an_architecture_that_cannot_be_built_without_values_is_built_with_them(valid, monkeypatch):
    build = timm.create_model

    def with_values_only(*args, **kwargs):
        if torch.empty(0).is_meta:
            raise NotImplementedError("Cannot copy out of meta tensor; no data!")
        return build(*args, **kwargs)

    monkeypatch.setattr(timm, "create_model", with_values_only)
    shapes = tensors.check_header(valid.weights, what=WHAT)
    needed = tensors.needed_shapes("test_vit", {"img_size": 160}, what=WHAT)
    tensors.check_fit(shapes, needed, what=WHAT)


# Laws.


def decide(check: Callable[..., Any], raw: bytes) -> Any:
    """What the check returns, or None if it refuses; whatever else it raises is a failure."""
    try:
        return check(raw, what=WHAT)
    except WeightError:
        return None


@settings(max_examples=50, deadline=None)
@given(value=JSON_VALUES, ascii_only=st.booleans())
def test_plain_json_comes_back_as_it_was(value, ascii_only):
    raw = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert strict_json.parse_json(raw, what=WHAT, max_bytes=10**6) == value


SMALL = safetensors.torch.save(
    {
        "a.weight": torch.ones(2, 3),
        "a.bias": torch.zeros(2, dtype=torch.float16),
        "mask": torch.tensor([True, False]),
        "steps": torch.tensor(7),
    },
    {"format": "pt"},
)


@settings(max_examples=50, deadline=None)
@given(raw=headers() | damaged(SMALL) | damaged(SMALL[: SMALL.index(b"}}") + 2]))
def test_what_the_header_check_accepts_safetensors_reads_the_same(raw):
    shapes = decide(tensors.check_header, raw)
    if shapes is not None:
        read = safetensors.torch.load(raw)
        assert {name: tuple(tensor.shape) for name, tensor in read.items()} == shapes
    loaded = decide(tensors.load_tensors, raw)
    assert loaded is None or all(
        torch.isfinite(tensor).all() for tensor in loaded.values() if tensor.is_floating_point()
    )
