"""Hand our parsers whatever hypothesis thinks of: they return a value or raise an error of ours.

    python scripts/fuzz.py --minutes 10
    python scripts/fuzz.py --minutes 2 --only manifest --seed 7

Inputs are random bytes and structures, and valid ones with a few slips, which find more. Any other
exception, more than 10 s of computing or 2 GiB of memory for one input is a finding. Prints the
inputs tried by parser and each finding once, with the smallest input; fails if there is one.
"""

import argparse
import contextlib
import io
import itertools
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import timm
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from torch import nn

from measuring import process_peak_bytes
from pcd_hub.errors import PCDHubError
from pcd_hub.files.strict_json import parse_json
from pcd_hub.models.checkpoints import head_from_state, layout_of, read_checkpoint
from pcd_hub.train.configs import distill as configs
from pcd_hub.train.configs.command_line import parse
from pcd_hub.weights import catalogue, store
from pcd_hub.weights.card import render_card
from pcd_hub.weights.export import export_weight
from pcd_hub.weights.hub import address, published
from pcd_hub.weights.manifest import file_entries
from pcd_hub.weights.record import Measurement, WeightRecord
from pcd_hub.weights.safety import check_config, check_file_names, check_manifest
from pcd_hub.weights.tensors import check_header, load_tensors

MAX_SECONDS = 10.0
MAX_BYTES = 2 * 1024**3
WHAT = "an input"


class Parser(NamedTuple):
    """What is tried on what."""

    inputs: st.SearchStrategy[Any]
    parse: Callable[[Any], object]


# Inputs.

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
_MEANINGFUL = st.sampled_from(list(b'[]{}":,\\-0123456789.eutrfnls '))
_TOKENS = st.sampled_from(
    [b"[" * 99, b'{"a":' * 99, b"NaN", b"1e999", b"9" * 30, b'"\\ud800"', b"\xef\xbb\xbf", b"null"]
)


@st.composite
def damaged(draw: st.DrawFn, raw: bytes) -> bytes:
    """``raw``, cut short or with a few bytes exchanged, often for others that mean something."""
    place = st.integers(0, max(len(raw) - 1, 0))
    byte = st.integers(0, 255) | _MEANINGFUL
    changed = bytearray(raw)
    for at, value in draw(st.lists(st.tuples(place, byte), min_size=1, max_size=4)):
        changed[at : at + 1] = bytes([value])
    if draw(st.booleans()):
        start, end, to = draw(place), draw(place), draw(place)
        changed[to:to] = draw(st.just(bytes(changed[start:end][:2000])) | _TOKENS)
    return bytes(changed[: draw(st.none() | st.integers(0, len(changed)))])


@st.composite
def slipped(draw: st.DrawFn, root: Any) -> Any:
    """A copy with other values in a few places, or without them, or under another key."""
    root = json.loads(json.dumps(root))
    for _ in range(draw(st.integers(1, 3))):
        parent, key = draw(st.sampled_from(places(root) or [([], 0)]))
        value = draw(JSON_VALUES | st.sampled_from([True, 0, -1, 2**63, 1e308, "", "\x1b", {}, []]))
        if isinstance(parent, dict) and draw(st.booleans()):
            parent[draw(st.text(max_size=8))] = parent.pop(key)
        elif parent:
            parent[key] = value
    return root


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container below ``value``, with each of its keys."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    found = []
    for key in keys:
        found.append((value, key))
        if isinstance(value[key], dict | list):
            found += places(value[key])
    return found


def encoded(value: Any) -> bytes:
    """As UTF-8, lone surrogates escaped."""
    return json.dumps(value).encode()


def packed(header: bytes, data: bytes = b"") -> bytes:
    """A safetensors file."""
    return len(header).to_bytes(8, "little") + header + data


_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1}
_DIMS = st.lists(st.integers(0, 3), max_size=3) | st.lists(
    st.integers(0, 4) | st.just(2**31), max_size=9
)


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """Files that are mostly whole: tensors one behind the other, with a slip now and then."""
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
    return packed(encoded(shuffled), bytes(min(max(position, 0), 1000)))


# What is valid, and what reads it.


def small_record() -> WeightRecord:
    """With one of everything."""
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
    """Everything that is made of a record."""
    record = WeightRecord.from_dict(raw)
    record.measurements()
    return record.to_json()


def parsers(folder: Path) -> dict[str, Parser]:
    """By name; ``folder`` is theirs."""
    os.environ["PCD_HUB_HOME"] = str(folder / "store")
    torch.manual_seed(0)
    model, record = timm.create_model("test_resnet", num_classes=0), small_record()
    export = export_weight(model.state_dict(), record, folder / "export", image_size=32)
    config = json.loads((export / "config.json").read_text())
    manifest = json.loads((export / "pcd_manifest.json").read_text())
    files = file_entries(export)
    anything = st.binary(max_size=200) | JSON_VALUES.map(encoded)

    def around(valid: Any) -> st.SearchStrategy[bytes]:
        return anything | damaged(encoded(valid)) | slipped(valid).map(encoded)

    def card(raw: dict[str, Any]) -> object:
        return render_card(WeightRecord.from_dict(raw), files=files, repo="a/b")

    def read_manifest(raw: bytes) -> object:
        return read_record(check_manifest(raw, what=WHAT)["record"])

    return {
        "json": Parser(around(config), lambda raw: parse_json(raw, what=WHAT, max_bytes=1_000_000)),
        "manifest": Parser(around(manifest), read_manifest),
        "record": Parser(slipped(record.to_dict()), read_record),
        "card": Parser(slipped(manifest["record"]), card),
        "config": Parser(around(config), lambda raw: check_config(raw, what=WHAT)),
        "names": Parser(
            st.lists(st.text(max_size=20) | st.from_regex(r"[a-z]{1,3}\.png"), max_size=4),
            lambda names: check_file_names(names, what=WHAT),
        ),
        **tensor_parsers(anything),
        **place_parsers(folder / "store"),
        **checkpoint_parsers(folder),
        "command line": Parser(arguments(), read_command_line),
    }


def tensor_parsers(anything: st.SearchStrategy[bytes]) -> dict[str, Parser]:
    """Of safetensors files."""
    small = safetensors.torch.save(
        {"a.weight": torch.ones(2, 3), "b": torch.zeros(2).half(), "c": torch.tensor([True])}
    )
    raw = anything.map(packed) | anything | headers() | damaged(small)
    raw |= damaged(small[: small.index(b"}}") + 2])
    return {
        "header": Parser(raw, lambda raw: check_header(raw, what=WHAT)),
        "tensors": Parser(raw, lambda raw: load_tensors(raw, what=WHAT)),
    }


def place_parsers(home: Path) -> dict[str, Parser]:
    """Of names, references, and the files that remember where a weight is."""
    commit, repo = "0" * 40, "org/x.pcd"
    lock = home / "pins" / f"{repo}@main"
    lock.parent.mkdir(parents=True)
    entry = {"name": "x.pcd", "repo": repo, "commit": commit, "manifest_sha256": "0" * 64}
    entry |= {"weights_sha256": "0" * 64, "license": "mit", "parameters": 1, "features": [0.5]}
    line = f"{repo}@{commit} {'0' * 64}\n".encode()

    def read_lock(raw: bytes) -> object:
        lock.write_bytes(raw)
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
        "lock": Parser(raw | damaged(line), read_lock),
        "list": Parser(raw | slipped([entry]).map(encoded) | damaged(encoded([entry])), read_list),
        "reference": Parser(text, read_reference),
    }


def checkpoint_parsers(folder: Path) -> dict[str, Parser]:
    """Of teachers' files."""
    layout = layout_of("mocov3", "test_resnet")
    head = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    state = {f"momentum_encoder.fc.{key}": value for key, value in head.state_dict().items()}
    whole = {"state_dict": {**state, "momentum_encoder.conv.weight": torch.ones(2, 2)}}
    written = []
    for is_archive in (True, False):
        stream = io.BytesIO()
        torch.save(whole, stream, _use_new_zipfile_serialization=is_archive)
        written.append(stream.getvalue())

    def read_file(raw: bytes) -> object:
        (folder / "teacher.pth").write_bytes(raw)
        return read_checkpoint(folder / "teacher.pth", layout)

    tensors = st.lists(st.integers(0, 5), max_size=3).map(torch.zeros)
    keys = st.from_regex(r"\A[0-9]{1,3}\.(weight|bias|running_mean|x)\Z") | st.text(max_size=5)
    return {
        "checkpoint": Parser(
            st.binary(max_size=100) | damaged(written[0]) | damaged(written[1]), read_file
        ),
        "head": Parser(
            st.dictionaries(keys | st.sampled_from(list(head.state_dict())), tensors, min_size=1),
            lambda state: head_from_state(state, Path("x.pth")),
        ),
    }


@st.composite
def arguments(draw: st.DrawFn) -> list[str]:
    """A configuration's name, and options as somebody may mistype them."""
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
    """Usage errors of tyro's own end in exit code 2, as the shell expects."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            return parse(configs.DISTILL, "quickstart", words)
        except SystemExit as ended:
            if ended.code not in {0, 2}:
                raise
    return None


# The campaign.


class Slow(BaseException):
    """Past every ``except Exception``."""


def decide(parser: Parser, value: Any) -> None:
    """Let it parse one input; whatever is neither a value nor an error of ours is raised."""
    memory = process_peak_bytes()
    signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
    try:
        with contextlib.suppress(PCDHubError):
            parser.parse(value)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if (grown := process_peak_bytes() - memory) > MAX_BYTES:
        raise AssertionError(f"it took {grown} bytes")


def _stop(*_: object) -> None:
    raise Slow(f"more than {MAX_SECONDS:.0f} s")


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Inside, an input that takes too long is stopped."""
    before = signal.signal(signal.SIGPROF, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGPROF, before)


def round_of(
    parser: Parser, *, examples: int, seed_of_round: int | None = None, count: Callable[[], None]
) -> None:
    """So many inputs; what hypothesis finds it makes small, and raises.

    Without a seed they are the same every time.
    """

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=seed_of_round is None,
        report_multiple_bugs=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=(
            HealthCheck.too_slow,
            HealthCheck.data_too_large,
            HealthCheck.large_base_example,
            HealthCheck.filter_too_much,
        ),
    )
    @given(value=parser.inputs)
    def law(value: Any) -> None:
        count()
        decide(parser, value)

    (law if seed_of_round is None else seed(seed_of_round)(law))()


def main() -> None:
    """Take the parsers in turns until the time is over."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--minutes", type=float, default=10.0)
    options.add_argument("--only", default="", help="parsers whose name holds this")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--examples", type=int, default=200, help="of one parser's turn")
    given_options = options.parse_args()
    tried: Counter[str] = Counter()
    spent: Counter[str] = Counter()
    findings: dict[str, str] = {}
    end = time.monotonic() + 60 * given_options.minutes
    with tempfile.TemporaryDirectory() as scratch, bounded():
        known = parsers(Path(scratch))
        chosen = [name for name in known if given_options.only in name]
        for number in itertools.count(given_options.seed):
            for name in chosen:
                start = time.monotonic()
                if start > end:
                    report(tried, spent, findings)
                try:
                    round_of(
                        known[name],
                        examples=given_options.examples,
                        seed_of_round=number,
                        count=lambda name=name: tried.update([name]),
                    )
                except (Exception, Slow) as error:
                    note(findings, name, error)
                spent[name] += time.monotonic() - start  # pyright: ignore[reportArgumentType]


def note(findings: dict[str, str], name: str, error: BaseException) -> None:
    """Print a finding the first time."""
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if "hypothesis" not in f.filename
    ]
    where = (
        f"{name}: {type(error).__name__} at {Path(frames[-1].filename).name}:{frames[-1].lineno}"
    )
    if where not in findings:
        findings[where] = str(error)
        print(f"FOUND {where}: {error}\n  {' '.join(getattr(error, '__notes__', []))}", flush=True)


def report(tried: Counter[str], spent: Counter[str], findings: dict[str, str]) -> None:
    """Print the numbers, and end."""
    for name, count in tried.items():
        print(f"{name:14} {count:8} inputs  {spent[name]:6.0f} s")
    print(f"{sum(tried.values())} inputs in {sum(spent.values()) / 60:.1f} minutes; ", end="")
    print(f"{len(findings)} findings; peak {process_peak_bytes() / 2**20:.0f} MiB")
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
