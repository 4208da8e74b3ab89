"""The parsers of untrusted input, with strategies for their inputs."""

import contextlib
import io
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import timm
import torch
from hypothesis import strategies as st
from torch import nn

from pcd_hub.errors import PCDHubError
from pcd_hub.files.strict_json import parse_json
from pcd_hub.models.checkpoints import head_from_state, read_checkpoint
from pcd_hub.models.layouts import layout_of
from pcd_hub.train.configs import distill as configs
from pcd_hub.train.configs.command_line import parse
from pcd_hub.weights import catalogue, store
from pcd_hub.weights.cards.card import render_card
from pcd_hub.weights.export import export_weight
from pcd_hub.weights.hub import address, published
from pcd_hub.weights.manifest import file_entries
from pcd_hub.weights.record import Measurement, WeightRecord
from pcd_hub.weights.safety import check_config, check_file_names, check_manifest
from pcd_hub.weights.tensors import check_header, load_tensors

WHAT = "an input"


class Target(NamedTuple):
    """A parser and its inputs."""

    inputs: st.SearchStrategy[Any]
    parse: Callable[[Any], object]


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
_JSON_CHARACTERS = st.sampled_from(list(b'[]{}":,\\-0123456789.eutrfnls '))
_TOKENS = st.sampled_from(
    [b"[" * 99, b'{"a":' * 99, b"NaN", b"1e999", b"9" * 30, b'"\\ud800"', b"\xef\xbb\xbf", b"null"]
)


@st.composite
def damaged(draw: st.DrawFn, raw: bytes) -> bytes:
    """Truncate ``raw`` or replace a few bytes, often by characters of JSON."""
    place = st.integers(0, max(len(raw) - 1, 0))
    byte = st.integers(0, 255) | _JSON_CHARACTERS
    changed = bytearray(raw)
    for at, value in draw(st.lists(st.tuples(place, byte), min_size=1, max_size=4)):
        changed[at : at + 1] = bytes([value])
    if draw(st.booleans()):
        start, end, to = draw(place), draw(place), draw(place)
        changed[to:to] = draw(st.just(bytes(changed[start:end][:2000])) | _TOKENS)
    return bytes(changed[: draw(st.none() | st.integers(0, len(changed)))])


@st.composite
def modified(draw: st.DrawFn, root: Any) -> Any:
    """Copy ``root`` and replace, or rename the key of, a few of its values."""
    root = json.loads(json.dumps(root))
    for _ in range(draw(st.integers(1, 3))):
        parent, key = draw(st.sampled_from(list_places(root) or [([], 0)]))
        value = draw(JSON_VALUES | st.sampled_from([True, 0, -1, 2**63, 1e308, "", "\x1b", {}, []]))
        if isinstance(parent, dict) and draw(st.booleans()):
            parent[draw(st.text(max_size=8))] = parent.pop(key)
        elif parent:
            parent[key] = value
    return root


def list_places(value: Any) -> list[tuple[Any, Any]]:
    """Return every container in ``value``, itself included, with each of its keys."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    places = []
    for key in keys:
        places.append((value, key))
        if isinstance(value[key], dict | list):
            places += list_places(value[key])
    return places


def encode_json(value: Any) -> bytes:
    """Encode as UTF-8, with lone surrogates escaped."""
    return json.dumps(value).encode()


def pack_safetensors(header: bytes, data: bytes = b"") -> bytes:
    """Assemble a safetensors file."""
    return len(header).to_bytes(8, "little") + header + data


_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1}
_DIMS = st.lists(st.integers(0, 3), max_size=3) | st.lists(
    st.integers(0, 4) | st.just(2**31), max_size=9
)


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """Draw safetensors files that are mostly valid, with an occasional wrong offset."""
    names = draw(st.lists(st.text("aB_.0-\n", max_size=3), max_size=4, unique=True))
    header, position = {}, 0
    for name in names:
        dtype, shape = draw(st.sampled_from([*_SIZES, "F8_E4M3", "U16"])), draw(_DIMS)
        size = _SIZES.get(dtype, 1)
        for dim in shape:
            size *= dim
        end = position + size + draw(st.sampled_from([0, 0, 0, 0, 0, 1, -1]))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, end]}
        position = end
    shuffled = dict(draw(st.permutations(list(header.items()))))
    return pack_safetensors(encode_json(shuffled), bytes(min(max(position, 0), 1000)))


def small_record() -> WeightRecord:
    """Build a record in which every field is set."""
    table = Measurement(
        task="segmentation",
        dataset="scenes",
        metric="mean IoU",
        unit="%",
        images=4,
        seeds=2,
        protocol="linear",
        command="python x.py",
        subject="student",
        means={"student": 50.0, "teacher": 60.0},
        stds={"student": 1.0, "teacher": 0.0},
    )
    trial = WeightRecord.trial("test_resnet").to_dict()
    facts = {"teacher": {"source": "timm:x"}, "data": {"source": "hf:a/b", "images": 4}}
    more = {"hardware": {"seconds": 3}, "config": {"method": {"loss": "x", "targets": "pixels"}}}
    return WeightRecord.from_dict(trial | facts | more | {"metrics": {"probe": asdict(table)}})


def read_record(raw: dict[str, Any]) -> object:
    """Parse a record and everything derived from it."""
    record = WeightRecord.from_dict(raw)
    record.measurements()
    return json.dumps(record.to_dict())


def build_targets(folder: Path) -> dict[str, Target]:
    """Return all targets by name; they write to ``folder``."""
    os.environ["PCD_HUB_HOME"] = str(folder / "store")
    torch.manual_seed(0)
    model, record = timm.create_model("test_resnet", num_classes=0), small_record()
    export = export_weight(model.state_dict(), record, folder / "export", image_size=32)
    config = json.loads((export / "config.json").read_text())
    manifest = json.loads((export / "pcd_manifest.json").read_text())
    files = file_entries(export)
    anything = st.binary(max_size=200) | JSON_VALUES.map(encode_json)

    def around(valid: Any) -> st.SearchStrategy[bytes]:
        return anything | damaged(encode_json(valid)) | modified(valid).map(encode_json)

    def card(raw: dict[str, Any]) -> object:
        return render_card(WeightRecord.from_dict(raw), files=files, repo="a/b")

    def read_manifest(raw: bytes) -> object:
        return read_record(check_manifest(raw, what=WHAT)["record"])

    return {
        "json": Target(around(config), lambda raw: parse_json(raw, what=WHAT, max_bytes=1_000_000)),
        "manifest": Target(around(manifest), read_manifest),
        "record": Target(modified(record.to_dict()), read_record),
        "card": Target(modified(manifest["record"]), card),
        "config": Target(around(config), lambda raw: check_config(raw, what=WHAT)),
        "names": Target(
            st.lists(st.text(max_size=20) | st.from_regex(r"[a-z]{1,3}\.png"), max_size=4),
            lambda names: check_file_names(names, what=WHAT),
        ),
        **tensor_targets(anything),
        **reference_targets(folder / "store"),
        **checkpoint_targets(folder),
        "command line": Target(arguments(), read_command_line),
    }


def tensor_targets(anything: st.SearchStrategy[bytes]) -> dict[str, Target]:
    """Return the parsers of safetensors files."""
    small = safetensors.torch.save(
        {"a.weight": torch.ones(2, 3), "b": torch.zeros(2).half(), "c": torch.tensor([True])}
    )
    raw = anything.map(pack_safetensors) | anything | headers() | damaged(small)
    raw |= damaged(small[: small.index(b"}}") + 2])
    return {
        "header": Target(raw, lambda raw: check_header(raw, what=WHAT)),
        "tensors": Target(raw, lambda raw: load_tensors(raw, what=WHAT)),
    }


def reference_targets(home: Path) -> dict[str, Target]:
    """Return the parsers of references, pin files and the list of published weights."""
    commit, repo = "0" * 40, "org/x.pcd"
    pin_file = home / "pins" / f"{repo}@main"
    pin_file.parent.mkdir(parents=True)
    entry = {"name": "x.pcd", "repo": repo, "commit": commit, "manifest_sha256": "0" * 64}
    entry |= {"weights_sha256": "0" * 64, "license": "mit", "parameters": 1, "features": [0.5]}
    line = f"{repo}@{commit} {'0' * 64}\n".encode()

    def read_pin_file(raw: bytes) -> object:
        pin_file.write_bytes(raw)
        return catalogue.find(repo)

    def read_list(raw: bytes) -> object:
        (home / "list.json").write_bytes(raw)
        return published.read_list(home / "list.json")

    def read_reference(text: str) -> object:
        for read in (address.split_reference, catalogue.find, store.where, address.check_endpoint):
            with contextlib.suppress(PCDHubError):
                read(text)
        return address.redacted(text)

    text = st.text() | st.from_regex(r"(https?://)?[a-z@:.\-\[\]]{1,20}/[a-z.\-@]{0,9}")
    raw = st.binary(max_size=100)
    return {
        "pin file": Target(raw | damaged(line), read_pin_file),
        "list": Target(
            raw | modified([entry]).map(encode_json) | damaged(encode_json([entry])), read_list
        ),
        "reference": Target(text, read_reference),
    }


def checkpoint_targets(folder: Path) -> dict[str, Target]:
    """Return the parsers of teacher checkpoints."""
    layout = layout_of("mocov3", "test_resnet")
    head = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    state = {f"momentum_encoder.fc.{key}": value for key, value in head.state_dict().items()}
    checkpoint = {"state_dict": {**state, "momentum_encoder.conv.weight": torch.ones(2, 2)}}
    files = []
    for is_archive in (True, False):
        stream = io.BytesIO()
        torch.save(checkpoint, stream, _use_new_zipfile_serialization=is_archive)
        files.append(stream.getvalue())

    def read_file(raw: bytes) -> object:
        (folder / "teacher.pth").write_bytes(raw)
        return read_checkpoint(folder / "teacher.pth", layout)

    tensors = st.lists(st.integers(0, 5), max_size=3).map(torch.zeros)
    keys = st.from_regex(r"\A[0-9]{1,3}\.(weight|bias|running_mean|x)\Z") | st.text(max_size=5)
    return {
        "checkpoint": Target(
            st.binary(max_size=100) | damaged(files[0]) | damaged(files[1]), read_file
        ),
        "head": Target(
            st.dictionaries(keys | st.sampled_from(list(head.state_dict())), tensors, min_size=1),
            lambda state: head_from_state(state, Path("x.pth")),
        ),
    }


@st.composite
def arguments(draw: st.DrawFn) -> list[str]:
    """Draw a configuration's name and options, with typing errors."""
    option = st.sampled_from(OPTIONS) | st.from_regex(r"\A--?[a-z.=\-]{0,12}\Z")
    number = st.integers(-(10**30), 10**30).map(str) | st.floats().map(str)
    value = st.text(max_size=8) | number | st.sampled_from(["None", "True", "9" * 5000, "match"])
    joined = st.tuples(option, value).map("=".join)
    names = st.sampled_from([*configs.DISTILL, "quickstrat"]) | st.text(max_size=8)
    given_name = draw(st.lists(names, max_size=1))
    return given_name + draw(st.lists(joined | option | value, max_size=4))


OPTIONS = (
    *("--teacher.source", "--student.arch", "--data.image-size", "--data.min-crop-area"),
    *("--method.temperature", "--method.queue-length", "--optim.global-batch-size"),
    *("--optim.lr-per-256", "--run.max-steps", "--run.no-store", "--speed.compile"),
    *("--speed.no-channels-last", "--probe-scenes"),
)


def read_command_line(words: list[str]) -> object:
    """Parse a command line; tyro exits with code 2 for usage errors."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            return parse(configs.DISTILL, "quickstart", words)
        except SystemExit as ended:
            if ended.code not in {0, 2}:
                raise
    return None
