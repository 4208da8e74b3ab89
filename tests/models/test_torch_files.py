"""What torch saved comes back; what would come back with more than is in the file is an error."""

import argparse
import io
import random
import struct
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from pcd_hub.errors import TeacherError
from pcd_hub.models import torch_files
from pcd_hub.models.checkpoints import read_checkpoint
from pcd_hub.models.layouts import layout_of
from pcd_hub.models.tensor_files import load_tensor_file
from pcd_hub.models.torch_files import read_torch_file
from tests.weights.hostile_teachers import (
    as_archive,
    borrowed_memory,
    changed_archive,
    in_old_form,
    named,
    number,
    of_tensors,
    opcodes,
    storage,
    tensor,
    text,
    two_directories,
)


def saved(value: object, **options) -> bytes:
    written = io.BytesIO()
    torch.save(value, written, **options)
    return written.getvalue()


FORMS = [
    pytest.param({}, id="an archive"),
    pytest.param({"_use_new_zipfile_serialization": False}, id="the old form"),
]


def tensors_of_all_kinds() -> dict[str, object]:
    base = torch.arange(24.0)
    odd = OrderedDict(a=torch.ones(2))
    odd._metadata = {"": {"version": 1}}
    return {
        "a view": base[4:20].view(4, 4).t(),
        "another of it": base[::3],
        "all of it": nn.Parameter(base),
        "empty": torch.zeros(0),
        "empty too": torch.zeros(3, 0),
        "the end of it": base[24:],
        "a scalar": torch.tensor(3),
        "expanded": torch.zeros(1).expand(3, 4),
        "with attributes": odd,
        "none": [None, True, 1.5, "text", b"", torch.Size((1, 2)), torch.device("cpu")],
        **{
            f"{dtype}": torch.ones(3).to(dtype)
            for dtype in (
                *(torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128),
                *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
                *(torch.uint16, torch.uint32, torch.uint64),
                *(torch.float8_e4m3fn, torch.float8_e5m2),
            )
        },
    }


def read(content: bytes, file: Path) -> object:
    file.write_bytes(content)
    return read_torch_file(file)[0]


@pytest.mark.parametrize("options", FORMS)
@pytest.mark.parametrize("name", tensors_of_all_kinds())
def test_every_tensor_that_torch_saves_is_read(tmp_path, name, options):
    value = tensors_of_all_kinds()[name]
    found = read(saved({"state_dict": {name: value}}, **options), tmp_path / "file")
    if isinstance(value, torch.Tensor):
        tensor = found["state_dict"][name]
        assert tensor.dtype == value.dtype
        assert tensor.stride() == value.stride()
        if not value.is_complex():  # float8 cannot be compared as it is
            tensor, value = tensor.float(), value.float()
        assert torch.equal(tensor, value)


@pytest.mark.parametrize("options", FORMS)
def test_views_of_one_storage_are_read_together(tmp_path, options):
    values = list(tensors_of_all_kinds().values())[:8]
    found = read(saved(values, **options), tmp_path / "file")
    assert all(map(torch.equal, found, values))


def test_an_untyped_storage_is_no_tensor_and_harms_none(tmp_path):
    content = saved({"a": torch.arange(3.0), "b": torch.zeros(5).untyped_storage()})
    assert torch.equal(read(content, tmp_path / "file")["a"], torch.arange(3.0))


def test_another_byte_order_is_named(tmp_path):
    content = changed_archive(saved({"a": torch.arange(3.0)}), byteorder=b"big")
    with pytest.raises(ValueError, match="another byte order"):
        read(content, tmp_path / "file")


@pytest.mark.parametrize("options", FORMS)
def test_optimizer_and_whole_training_state_are_read(tmp_path, options):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(
        [{"params": [parameter]} for parameter in model.parameters()], lr=1e-3
    )
    model(torch.rand(2, 3)).sum().backward()
    optimizer.step()
    state = {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    found = read(saved(state, **options), tmp_path / "file")
    assert found["epoch"] == 3
    assert found["optimizer"]["param_groups"] == state["optimizer"]["param_groups"]
    for key, value in model.state_dict().items():
        assert torch.equal(found["state_dict"][key], value)


def test_every_storage_of_torch_but_the_quantized_is_known():
    known = torch.storage._storage_type_to_dtype_map()
    assert len(known) == 17
    for name, dtype in known.items():
        assert torch_files._GLOBALS.get(f"torch.{name}") in {dtype, None if "Q" in name else dtype}


@pytest.mark.parametrize("name", borrowed_memory())
def test_memory_that_is_not_in_the_file_is_refused_before_torch_reads_it(
    tmp_path, monkeypatch, name
):
    (tmp_path / "evil").write_bytes(borrowed_memory()[name])
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(
        TeacherError, match="no checkpoint of plain tensors|no state dict"
    ) as refused:
        read_checkpoint(tmp_path / "evil", layout_of("resnet", "test_resnet"))
    assert "NoneType" not in str(refused.value), "torch.load was called"


def test_the_pieces_of_those_cases_are_what_torch_reads(tmp_path):
    """Else they would be refused for a slip of ours."""
    four = torch.arange(4.0)
    archive = changed_archive(saved({"x": four}), **{"data.pkl": of_tensors(tensor(storage(4)))})
    values = struct.pack("<q4f", 4, *four)
    old = in_old_form(of_tensors(tensor(storage(4, "N"))), keys=["0"], values=values)
    for content in (archive, old):
        assert torch.equal(read(content, tmp_path / "file")["x"], four)
        assert torch.equal(torch.load(io.BytesIO(content), weights_only=True)["x"], four)


def test_of_an_archive_with_two_directories_only_the_last_counts(tmp_path):
    """zipfile reads the last, torch the one it is told of: which is of no importance here."""
    content = two_directories()
    assert len(torch._C.PyTorchFileReader(io.BytesIO(content)).get_record("data/0")) == 16
    assert read(content, tmp_path / "file") == {}


@pytest.mark.parametrize(
    ("size", "stride", "offset", "fits"),
    [
        ((4,), (1,), 0, True),
        ((2, 2), (1, 2), 0, True),
        ((9, 4), (0, 1), 0, True),
        ((0, 9), (9, 1), 4, True),
        ((), (), 3, True),
        ((), (), 4, False),
        ((4,), (1,), 1, False),
        ((2,), (4,), 0, False),
        ((2,), (-1,), 1, False),
        ((4,), (1,), -1, False),
        ((2, 2), (1,), 0, False),
    ],
)
def test_a_tensor_lies_in_its_storage(tmp_path, size, stride, offset, fits):
    pickled = of_tensors(tensor(storage(4), size=size, stride=stride, offset=offset))
    content = changed_archive(saved({"x": torch.zeros(4)}), **{"data.pkl": pickled})
    if fits:
        assert read(content, tmp_path / "file")["x"].shape == size
        assert torch.load(io.BytesIO(content), weights_only=True)["x"].shape == size
    else:
        with pytest.raises(RuntimeError, match="out of bounds|[Nn]egative|mismatch|must be|inv"):
            read(content, tmp_path / "file")


def test_both_forms_hold_the_same_checkpoint(tmp_path):
    state = {"conv1.weight": torch.arange(6.0).view(2, 3)}
    for form in ({}, {"_use_new_zipfile_serialization": False}):
        (tmp_path / "file").write_bytes(saved(state, **form))
        found = read_checkpoint(tmp_path / "file", layout_of("resnet", "test_resnet")).encoder
        assert torch.equal(found["conv1.weight"], state["conv1.weight"])


def test_what_python_2_pickled_is_read(tmp_path):
    """Python 2 wrote text as bytes."""
    content = saved({"x": torch.zeros(4)}, _use_new_zipfile_serialization=False)
    as_bytes = content.replace(b"X\7\0\0\0storage", b"U\7storage")
    assert as_bytes != content
    assert read(as_bytes, tmp_path / "file")["x"].shape == (4,)


@pytest.mark.parametrize(
    "pickled",
    [
        b"}" + number(1) + b"\x85Ns",
        b"}\x8a\x09" + (2**61 - 1).to_bytes(9, "little") + b"Ns",
        b"}" + text("a") + b"\x8e" + struct.pack("<Q", 2**40),
        b"\x96" + struct.pack("<Q", 2**33),
    ],
    ids=["tuple as a key", "keys whose hashes collide", "bytes of 1 TB", "bytearray of 8 GB"],
)
def test_opcodes_and_keys_that_no_checkpoint_needs_are_errors(tmp_path, pickled):
    with pytest.raises((TypeError, KeyError)):
        read(as_archive(opcodes(pickled)), tmp_path / "file")


@pytest.mark.parametrize("options", FORMS)
def test_the_arguments_of_a_training_script_are_ignored(tmp_path, options):
    arguments = argparse.Namespace(arch="resnet18", lr=0.1, sizes=[1, 2])
    found = read(saved({"args": arguments, "a": torch.arange(3.0)}, **options), tmp_path / "file")
    assert torch.equal(found["a"], torch.arange(3.0))
    assert not hasattr(found["args"], "arch")


@dataclass
class Options:
    rate: float = 0.1


def kept_beside_the_tensors() -> dict[str, object]:
    return {
        "NumPy's number": np.float64(0.3),
        "NumPy's generator": np.random.get_state(),  # noqa: NPY002  # as training scripts do
        "array": np.arange(10),
        "dtype": np.dtype("f4"),
        "Python's generator": random.getstate(),
        "path": Path("a/b"),
        "date": datetime(2026, 1, 1, tzinfo=UTC),
        "defaultdict": defaultdict(list, a=[1]),
        "deque": deque([1, 2], maxlen=3),
        "milestones": Counter([30, 60]),
        "set": {1, 2},
        "bytes": b"abc",
        "options": Options(),
        "namespace": SimpleNamespace(a=1),
        "version of torch": torch.__version__,
    }


@pytest.mark.parametrize("options", FORMS)
@pytest.mark.parametrize("name", kept_beside_the_tensors())
def test_what_training_code_saves_beside_the_tensors_is_not_in_the_way(
    tmp_path, monkeypatch, name, options
):
    monkeypatch.setattr(Options, "__module__", "__main__")
    monkeypatch.setattr("__main__.Options", Options, raising=False)
    content = saved({"kept": kept_beside_the_tensors()[name], "a": torch.arange(3.0)}, **options)
    assert torch.equal(read(content, tmp_path / "file")["a"], torch.arange(3.0))


def test_of_a_history_of_mmengine_nothing_is_imported(tmp_path):
    history = named("mmengine.logging.history_buffer", "HistoryBuffer")
    filled = history + b")\x81}" + text("_log_history") + text("x") + b"sb"
    pickled = opcodes(b"}", text("message_hub"), filled, b"s")
    assert set(read(as_archive(pickled), tmp_path / "file")) == {"message_hub"}
    assert "mmengine" not in sys.modules


def test_items_of_a_defaultdict_are_read(tmp_path):
    state = defaultdict(dict, {"state_dict": {"a": torch.arange(3.0)}})
    assert torch.equal(read(saved(state), tmp_path / "x")["state_dict"]["a"], torch.arange(3.0))


class Mkdir:
    def __reduce__(self):
        return Path.mkdir, (Path("canary"),)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (argparse.Namespace(code=Mkdir()), "it contains a '.*getattr'"),
        (argparse.FileType("r"), "it contains a 'argparse.FileType'"),
    ],
)
def test_other_objects_beside_the_tensors_are_refused(tmp_path, value, message):
    with pytest.raises(ValueError, match=message):
        read(saved({"args": value}), tmp_path / "file")


def test_a_whole_model_is_not_called_truncated(tmp_path):
    torch.save(nn.Linear(2, 3), tmp_path / "model.pt")
    with pytest.raises(TeacherError, match="no checkpoint of plain tensors") as refused:
        load_tensor_file(tmp_path / "model.pt")
    assert "'torch.nn.modules.linear.Linear'" in str(refused.value)
    assert "torch.save(model.state_dict(), FILE)" in str(refused.value)
    assert "truncated" not in str(refused.value)
