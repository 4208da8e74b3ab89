"""What torch saved comes back; what would come back with more than is in the file is refused."""

import io
import struct
import zipfile
from collections import OrderedDict

import pytest
import torch
from torch import nn

from pcd_hub.errors import TeacherError
from pcd_hub.models.checkpoints import layout_of, read_checkpoint
from pcd_hub.models.pickles import check_saved
from pcd_hub.models.unpickling import STORAGE_ITEM_BYTES
from tests.weights.hostile_teachers import (
    borrowed_memory,
    changed_archive,
    in_old_form,
    of_tensors,
    storage,
    tensor,
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


@pytest.mark.parametrize("options", FORMS)
@pytest.mark.parametrize("name", tensors_of_all_kinds())
def test_every_tensor_that_torch_saves_passes(name, options):
    value = tensors_of_all_kinds()[name]
    if name == "none":
        value.remove(b"")  # a call of _codecs.encode
    check_saved(saved({"state_dict": {name: value}}, **options))


@pytest.mark.parametrize("options", FORMS)
def test_views_of_one_storage_pass_together(options):
    check_saved(saved(list(tensors_of_all_kinds().values())[:8], **options))


def test_an_untyped_storage_and_another_byte_order_pass():
    content = saved({"a": torch.arange(3.0), "b": torch.zeros(5).untyped_storage()})
    check_saved(content)
    check_saved(changed_archive(content, byteorder=b"big"))


def test_optimizer_and_whole_training_state_pass():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.rand(2, 3)).sum().backward()
    optimizer.step()
    state = {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        check_saved(saved(state, **options))


def test_every_storage_of_torch_has_its_item_size():
    known = torch.storage._storage_type_to_dtype_map()
    assert {f"torch {name}" for name in known} == STORAGE_ITEM_BYTES.keys() - {
        "torch.storage UntypedStorage"
    }
    for name, dtype in known.items():
        assert STORAGE_ITEM_BYTES[f"torch {name}"] == dtype.itemsize, name


@pytest.mark.parametrize("name", borrowed_memory())
def test_memory_that_is_not_in_the_file_is_refused_before_torch_reads_it(
    tmp_path, monkeypatch, name
):
    (tmp_path / "evil").write_bytes(borrowed_memory()[name])
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(TeacherError, match="no checkpoint of plain tensors") as refused:
        read_checkpoint(tmp_path / "evil", layout_of("resnet", "test_resnet"))
    assert "NoneType" not in str(refused.value), "torch.load was called"


def test_the_pieces_of_those_cases_are_what_torch_reads():
    """Else they would be refused for a slip of ours."""
    four = torch.arange(4.0)
    archive = changed_archive(saved({"x": four}), **{"data.pkl": of_tensors(tensor(storage(4)))})
    values = struct.pack("<q4f", 4, *four)
    old = in_old_form(of_tensors(tensor(storage(4, "N"))), keys=["0"], values=values)
    for content in (archive, old):
        check_saved(content)
        assert torch.equal(torch.load(io.BytesIO(content), weights_only=True)["x"], four)


def test_an_archive_of_two_directories_is_one_that_zipfile_and_torch_read_differently():
    content = two_directories()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.getinfo("archive/data/0").file_size == 200_000
    reader = torch._C.PyTorchFileReader(io.BytesIO(content))
    assert len(reader.get_record("data/0")) == 16
    with pytest.raises(ValueError, match="does not end with its directory"):
        check_saved(content)


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
def test_a_tensor_lies_in_its_storage(size, stride, offset, fits):
    pickled = of_tensors(tensor(storage(4), size=size, stride=stride, offset=offset))
    content = changed_archive(saved({"x": torch.zeros(4)}), **{"data.pkl": pickled})
    if fits:
        check_saved(content)
        assert torch.load(io.BytesIO(content), weights_only=True)["x"].shape == size
    else:
        with pytest.raises(ValueError, match="a tensor ends|no whole number|shorter|longer"):
            check_saved(content)


def test_both_forms_hold_the_same_checkpoint(tmp_path):
    state = {"conv1.weight": torch.arange(6.0).view(2, 3)}
    for form in ({}, {"_use_new_zipfile_serialization": False}):
        (tmp_path / "file").write_bytes(saved(state, **form))
        read = read_checkpoint(tmp_path / "file", layout_of("resnet", "test_resnet")).encoder
        assert torch.equal(read["conv1.weight"], state["conv1.weight"])


def test_what_python_2_pickled_passes():
    """Python 2 wrote text as bytes."""
    content = saved({"x": torch.zeros(4)}, _use_new_zipfile_serialization=False)
    as_bytes = content.replace(b"X\7\0\0\0storage", b"U\7storage")
    assert as_bytes != content
    check_saved(as_bytes)
    assert torch.load(io.BytesIO(as_bytes), weights_only=True)["x"].shape == (4,)
