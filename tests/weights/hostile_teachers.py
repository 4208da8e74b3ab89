"""Teachers' files that are no checkpoints: pickles that call, bombs, state dicts with a slip."""

import io
import json
import os
import pickle
import runpy
import struct
import subprocess
import tarfile
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save

import pcd_hub
from tests.weights.hostile_files import entry, packed
from tests.weights.making import moco_state
from tests.weights.trial import Case, Read

GIB = 1024**3
SPARSE = 3 * GIB
PLAIN = "no checkpoint of plain tensors"


def teacher_cases() -> list[Case]:
    return [
        *pickle_cases(),
        *bomb_cases(),
        *memory_cases(),
        *file_cases(),
        *state_cases(),
        *folder_cases(),
        *odd_file_cases(),
        *source_cases(),
    ]


def read_teacher(
    content: bytes, *, name: str = "evil.pth", source: str = "mocov3:test_resnet:"
) -> Callable[[Path], Read]:
    def prepare(place: Path) -> Read:
        (place / "input").mkdir()
        file = place / "input" / name
        file.write_bytes(content)
        return lambda: pcd_hub.load_teacher(f"{source}{file}", image_size=64)

    return prepare


class Call:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def opcodes(*parts: bytes | int) -> bytes:
    """Protocol 2; numbers are pushed."""
    pushed = (
        b"\x8a\x09" + part.to_bytes(9, "little", signed=True) if isinstance(part, int) else part
        for part in parts
    )
    return b"\x80\2" + b"".join(pushed) + b"."


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def as_archive(pickled: bytes, *files: tuple[str, bytes]) -> bytes:
    """What torch saves since 1.6, around this pickle."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name, content in (
            ("data.pkl", pickled),
            ("byteorder", b"little"),
            *files,
            ("version", b"3\n"),
        ):
            archive.writestr(f"archive/{name}", content)
    return written.getvalue()


def changed_archive(content: bytes, **records: bytes) -> bytes:
    """What torch saved, with some files of its archive exchanged."""
    written = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as before,
        zipfile.ZipFile(written, "w") as after,
    ):
        for name in before.namelist():
            after.writestr(name, records.get(name.partition("/")[2], before.read(name)))
    return written.getvalue()


def in_old_form(pickled: bytes, *, keys: object = (), values: bytes = b"") -> bytes:
    """What torch saved before 1.6, around this pickle."""
    numbers = [0x1950A86A20F9469CFC6C, 1001]
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    before = b"".join(pickle.dumps(value, 2) for value in [*numbers, machine])
    return before + pickled + pickle.dumps([*keys] if isinstance(keys, tuple) else keys, 2) + values


def packed_zeros(mebibytes: int) -> bytes:
    """Raw deflate; a thousandth as long."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(1024**2)) + packer.flush(zlib.Z_FULL_FLUSH)
    return block * mebibytes + b"\3\0"


def zlib_wrapped(deflated: bytes) -> bytes:
    return b"\x78\xda" + deflated + bytes(4)


def zipped(*files: tuple[str, bytes, int, int], overlap: int = 1) -> bytes:
    """An archive by hand: name, bytes, method, and the size that is claimed."""
    body, index = b"", b""
    for name, content, method, size in files:
        checksum = 0 if method else zlib.crc32(content)
        head = struct.pack("<5H3I", 20, 0, method, 0, 0, checksum, len(content), size)
        names = [name, *(f"{name}{number}" for number in range(1, overlap))]
        for one in names:
            index += b"PK\1\2\x14\0" + head + struct.pack("<5H2I", len(one), *[0] * 5, len(body))
            index += one.encode()
        body += b"PK\3\4" + head + struct.pack("<2H", len(name), 0) + name.encode() + content
    count = len(files) * overlap
    end = struct.pack("<4H2IH", 0, 0, count, count, len(index), len(body), 0)
    return body + index + b"PK\5\6" + end


def pickle_cases() -> list[Case]:
    """Pickles that call something; by each opcode that can, in each form that torch reads."""
    forms = {"alone": bytes, "in an archive": as_archive, "in the old form": in_old_form}
    found = {
        f"{form}: {name}": read_teacher(wrap(pickled))
        for form, wrap in forms.items()
        for name, pickled in pickled_calls().items()
    }
    evil = pickle.dumps(Call(os.system, "touch canary"), 2)
    script = as_archive(evil, ("constants.pkl", evil), ("code/__torch__.py", b"import os"))
    found |= {
        "as safetensors": read_teacher(evil, name="evil.safetensors"),
        "archive as safetensors": read_teacher(as_archive(evil), name="evil.safetensors"),
        "tar": read_teacher(in_a_tar(evil)),
        "TorchScript": read_teacher(script),
        "behind zeros": read_teacher(bytes(1000) + evil),
        "Python": read_teacher(b"import os\nos.system('touch canary')\n", name="evil.py"),
        "without a head": read_teacher(as_archive(evil), source="resnet:test_resnet:"),
        "for DINO": read_teacher(as_archive(evil), source="dino_r50:"),
    }
    return [Case(f"pickle {name}", prepare, PLAIN) for name, prepare in found.items()]


def pickled_calls() -> dict[str, bytes]:
    command, module, function = "touch canary", os.system.__module__, "system"
    system = Call(os.system, command)
    calls = {
        "eval": Call(eval, "__import__('os').system('touch canary')"),
        "exec": Call(exec, "import os; os.system('touch canary')"),
        "getattr": Call(getattr, Call(__import__, "os"), "system"),
        "open": Call(open, "canary", "w"),
        "subprocess": Call(subprocess.Popen, ["touch", "canary"]),
        "mkdir": Call(os.mkdir, "canary"),
        "torch.load": Call(torch.load, "canary", None, None),
        "torch.hub": Call(torch.hub.load, "evil/repo", "model"),
        "compile": Call(compile, "1", "canary", "exec"),
        "runpy": Call(runpy.run_path, "canary"),
        "nested": {"state_dict": {"a": [system]}},
        "as a key": {"state_dict": {system: 1}},
    }
    by_opcode = {
        "INST": f"(V{command}\ni{module}\n{function}\n.".encode(),
        "OBJ": b"(" + named(module, function) + f"V{command}\no.".encode(),
        "GLOBAL": opcodes(named(module, function), text(command), b"\x85R"),
        "STACK_GLOBAL": opcodes(text(module), text(function), b"\x93", text(command), b"\x85R"),
        "NEWOBJ": opcodes(named("subprocess", "Popen"), text(command), b"\x85\x81"),
        "BUILD": opcodes(named("posix", "environ"), b"}", text("x"), 3, b"sb"),
        "EXT1": b"\x80\2\x82\1.",
        "PERSID": b"Pposix.system\n.",
        "BINPERSID": opcodes(text("module"), text("posix"), b"\x86Q"),
    }
    by_protocol = {f"os.system, protocol {n}": pickle.dumps(system, n) for n in range(6)}
    return {name: pickle.dumps(call, 2) for name, call in calls.items()} | by_opcode | by_protocol


def in_a_tar(content: bytes) -> bytes:
    """As torch saved before 0.4, and a file beside."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        for name in ("storages", "tensors", "pickle", "../canary"):
            facts = tarfile.TarInfo(name)
            facts.size = len(content)
            archive.addfile(facts, io.BytesIO(content))
    return written.getvalue()


def bomb_cases() -> list[Case]:
    """A few bytes that would fill the memory, or take for ever."""
    bombs = {name: as_archive(pickled) for name, pickled in pickled_bombs().items()}
    bombs |= zip_bombs()
    reason = f"{PLAIN}|no state dict|no entry 'state_dict'"
    return [Case(f"bomb: {name}", read_teacher(raw), reason) for name, raw in bombs.items()]


def zip_bombs() -> dict[str, bytes]:
    zeros, one_mb = packed_zeros(SPARSE // 1024**2), bytes(2**20)
    with zipfile.ZipFile(io.BytesIO(saved({"state_dict": {"x": torch.zeros(2**20)}}))) as archive:
        structure = archive.read("archive/data.pkl")
    version = ("a/version", b"3\n", 0, 2)
    return {
        "pickle that unpacks to 3 GiB": zipped(("a/data.pkl", zeros, 8, SPARSE), version),
        "tensor that unpacks to 3 GiB": zipped(
            ("a/data.pkl", structure, 0, len(structure)), ("a/data/0", zeros, 8, SPARSE), version
        ),
        "1000 files that are one": zipped(
            ("a/data.pkl", one_mb, 0, 2**20), ("a/x", one_mb, 0, 2**20), overlap=1000
        ),
        "claims 4 GB": zipped(("a/data.pkl", b"}.", 0, 2**32 - 1)),
        "a file twice": zipped(("a/data.pkl", b"}.", 0, 2), ("a/DATA.PKL", b"}.", 0, 2)),
    }


def pickled_bombs() -> dict[str, bytes]:
    encode, ordered = named("_codecs", "encode"), named("collections", "OrderedDict")
    colliding = b"".join(
        b"\x8a\x0a%bN" % (i * (2**61 - 1)).to_bytes(10, "little") for i in range(80_000)
    )
    rebuild = named("torch._utils", "_rebuild_tensor")
    numbers = b"".join(b"M" + struct.pack("<H", i) + b"N" for i in range(60_000))
    tuples = b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60))
    lists = b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(60))
    hexed = (text("hex") + b"\x86R") * 32
    return {
        "bytearray of 8 GB": opcodes(named("builtins", "bytearray"), 2**33, b"\x85R"),
        "tensor of 4 TB": opcodes(named("torch", "FloatTensor"), 2**40, b"\x85R"),
        "text doubled": opcodes(encode * 33, text("aaaa"), text("latin1"), b"\x86R", hexed),
        "tuple doubled, as a key": opcodes(b")\x85q\0", tuples, b"}h\x3c", 1, b"s"),
        "list doubled, as a state dict": opcodes(
            b"]q\0", lists, b"}", text("state_dict"), b"h\x3cs"
        ),
        "a million tuples": opcodes(b")\x85" * 2**20),
        "5 MB of structure": opcodes(b"N" * 5_000_000),
        "100,000 levels of tuples": opcodes(b")" + b"\x85" * 10**5),
        "dictionary built often": opcodes(b"}(", numbers, b"uq\0", ordered, b")R", b"h\0b" * 10**5),
        "dictionary copied often": opcodes(
            b"}(", numbers, b"uq\0", ordered, b"q\1", b"h\1h\0\x85R" * 50_000
        ),
        "keys whose hashes collide": opcodes(b"}(", colliding, b"u"),
        "text times 2^31": opcodes(
            rebuild, storage(4), number(0), b"(", text("a" * 10**5), number(2**31 - 1), b"t)tR"
        ),
        "list times 2^31": opcodes(
            rebuild, storage(4), number(0), b"(](NNe", number(2**31 - 1), b"t)tR"
        ),
        "text of 4 GB that is not there": b"\x80\2X\xff\xff\xff\xff.",
        "stack that is empty": b"\x80\2R.",
        "mark that is not there": b"\x80\2u.",
        "memo that is not there": b"\x80\2h\5.",
        "no end": b"\x80\2}",
    }


def memory_cases() -> list[Case]:
    """Tensors whose values are not in the file: torch may return what its memory holds."""
    return [
        Case(
            f"storage: {name}",
            read_teacher(raw, source="resnet:test_resnet:"),
            "no state dict" if name == "in the other of two directories" else PLAIN,
        )
        for name, raw in borrowed_memory().items()
    ]


def borrowed_memory() -> dict[str, bytes]:
    whole = saved({"x": torch.zeros(50_000)})
    four = saved({"x": torch.zeros(4)})
    counted = struct.pack("<q", 4) + bytes(16)
    claims = struct.pack("<q", 50_000) + bytes(16)
    called = named("torch.storage", "TypedStorage") + number(50_000) + b"\x85R"
    wider = b"(" + storage(4) + numbers(0, (50_000,), (1,)) + b"t"
    in_archive = {
        "of two types": [tensor(storage(4)), tensor(storage(2, kind="DoubleStorage"))],
        "of no type of torch's": [tensor(storage(4, kind="FloatTensor"))],
        "beyond its end": [tensor(storage(4), size=(50_000,))],
        "far into it": [tensor(storage(4), offset=50_000)],
        "with long steps": [tensor(storage(4), stride=(50_000,))],
        "called for by name": [tensor(called, size=(50_000,))],
        "set afterwards": [tensor(storage(4)) + wider + b"b"],
        "of another key": [tensor(storage(4, key="1"))],
        "of a negative size": [tensor(storage(-4))],
    }
    old = {
        "unlisted": ([tensor(storage(50_000, "N"), size=(50_000,))], [], b""),
        "listed twice": ([tensor(storage(4, "N"))], ["0", "0"], counted * 2),
        "listed in a text": ([tensor(storage(4, "N"))], "0", counted),
        "cut short": ([tensor(storage(50_000, "N"), size=(50_000,))], ["0"], claims),
        "of another size": ([tensor(storage(4, "N"), size=(50_000,))], ["0"], claims),
        "empty, twice": (
            [tensor(storage(0, "N"), size=(0,)), tensor(storage(0, "N"), size=(50_000,))],
            ["0"],
            bytes(8),
        ),
        "a view": ([tensor(storage(4, ("1", 0, 2)))], ["0"], counted),
    }
    return {
        "cut short": changed_archive(whole, **{"data/0": bytes(16)}),
        "longer": changed_archive(four, **{"data/0": bytes(32)}),
        "missing": zip_without(whole, "archive/data/0"),
        "in the other of two directories": two_directories(),
        "in the other of two folders": two_folders(whole),
        **{
            name: changed_archive(four, **{"data.pkl": of_tensors(*tensors)})
            for name, tensors in in_archive.items()
        },
        **{
            f"old form, {name}": in_old_form(of_tensors(*tensors), keys=keys, values=values)
            for name, (tensors, keys, values) in old.items()
        },
    }


def of_tensors(*tensors: bytes) -> bytes:
    """A state dict of ``x``, ``xx``, ..., built by these opcodes."""
    return opcodes(b"}", *(text("x" * n) + one + b"s" for n, one in enumerate(tensors, 1)))


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def numbers(*values: int | tuple[int, ...]) -> bytes:
    return b"".join(
        number(value) if isinstance(value, int) else b"(" + numbers(*value) + b"t"
        for value in values
    )


def storage(
    count: int, view: str | tuple[str, int, int] = "", *, kind: str = "FloatStorage", key: str = "0"
) -> bytes:
    """A persistent id; in the old form with what it views, or ``N`` for none."""
    last = view.encode() if isinstance(view, str) else text(view[0]) + numbers(*view[1:]) + b"\x87"
    named_so = text("storage") + named("torch", kind) + text(key) + text("cpu")
    return b"(" + named_so + number(count) + last + b"tQ"


def tensor(
    place: bytes,
    *,
    size: tuple[int, ...] = (4,),
    stride: tuple[int, ...] = (1,),
    offset: int = 0,
) -> bytes:
    """The call that rebuilds one."""
    facts = place + numbers(offset, size, stride) + b"\x89" + named("collections", "OrderedDict")
    return named("torch._utils", "_rebuild_tensor_v2") + b"(" + facts + b")RtR"


def zip_without(content: bytes, name: str) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(written, "w") as after:
        for one in before.namelist():
            if one != name:
                after.writestr(one, before.read(one))
    return written.getvalue()


def two_folders(content: bytes) -> bytes:
    """torch looks into that of the first file."""
    written = io.BytesIO(changed_archive(content, **{"data/0": bytes(16)}))
    with zipfile.ZipFile(written, "a") as archive:
        archive.writestr("other/data/0", bytes(200_000))
    return written.getvalue()


def two_directories() -> bytes:
    """An archive in which zipfile takes the last directory, and torch the one it is told of."""
    evil = of_tensors(tensor(storage(50_000), size=(50_000,)))
    told = as_archive(evil, ("data/0", bytes(16)), ("pad", bytes(400_000)))
    last = as_archive(of_tensors(), ("data/0", bytes(200_000)), ("pad", b""))
    end = struct.Struct("<4s4H2IH")
    *_, size, told_place, _ = end.unpack(told[-22:])
    *_, last_place, _ = end.unpack(last[-22:])
    index = bytearray(last[last_place:-22])
    place = 0
    while place < size:  # zipfile counts from where the directory would begin if it were the told
        header = struct.unpack_from("<I", index, place + 42)[0]
        struct.pack_into("<I", index, place + 42, told_place + header - last_place)
        place += 46 + struct.unpack_from("<H", index, place + 28)[0]
    closing = end.pack(*end.unpack(told[-22:]))
    return told[:-22] + last[:last_place] + bytes(index) + closing


def file_cases() -> list[Case]:
    """Files that are something else."""
    comment = b"\xff\xff" + b"PK\5\6" * 16383 + b"xxx"
    files = {
        "empty": b"",
        "one byte": b"P",
        "zeros": bytes(10**6),
        "HTML": b"<!DOCTYPE html><html>not found</html>",
        "git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "archive cut short": as_archive(b"\x80\2}.")[:-30],
        "empty archive": b"PK\5\6" + bytes(18),
        "archive of nothing": as_archive(b""),
        "comment of 64 kB": as_archive(b"\x80\2}.")[:-2] + comment,
        "old form, cut short": in_old_form(b"")[:60],
    }
    tensors = {
        "header of 4 MB + 1": struct.pack("<Q", 4 * 2**20 + 1) + b"{" * 5 * 2**20,
        "header of 2^63": struct.pack("<Q", 2**63) + b"{}",
        "deep header": packed(b'{"a":' * 100_000),
        "70,000 tensors": packed({f"t{i}": entry("U8", [0], 0, 0) for i in range(70_000)}),
        "overlap": packed({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 2, 6)}, bytes(6)),
        "zero size, 2^62": packed({"a": entry("F32", [2**62, 0], 0, 0)}),
        "name of 1 MB": packed({"a" * 10**6: entry("F32", [1], 0, 4)}, bytes(4)),
    }
    return [
        *(Case(f"file: {name}", read_teacher(raw), PLAIN) for name, raw in files.items()),
        *(
            Case(f"file: {name}", read_teacher(raw, name="x.safetensors"), f"{PLAIN}|no entry")
            for name, raw in tensors.items()
        ),
        Case("file: sparse", sparse_teacher("evil.pth", b""), PLAIN),
        Case("file: sparse tensors", sparse_teacher("x.safetensors", b"\xff" * 8), PLAIN),
        Case("file: 17 GiB", sparse_teacher("evil.pth", b"PK\3\4", 17 * GIB), "at most 1717986"),
        Case("file: a pipe", teacher_pipe, "no teacher file"),
    ]


def state_cases() -> list[Case]:
    """State dicts of MoCo v3 with a slip."""
    return [
        Case(f"state: {name}", read_teacher(saved(value)), reason)
        for name, (value, reason) in {**odd_containers(), **odd_states(), **odd_heads()}.items()
    ]


def saved(value: object) -> bytes:
    written = io.BytesIO()
    torch.save(value, written)
    return written.getvalue()


def sparse_teacher(name: str, start: bytes, size: int = SPARSE) -> Callable[[Path], Read]:
    def prepare(place: Path) -> Read:
        read = read_teacher(start, name=name)(place)
        os.truncate(place / "input" / name, size)
        return read

    return prepare


def teacher_pipe(place: Path) -> Read:
    read = read_teacher(b"")(place)
    (place / "input" / "evil.pth").unlink()
    os.mkfifo(place / "input" / "evil.pth")
    return read


def odd_containers() -> dict[str, tuple[object, str]]:
    one = torch.zeros(1)
    return {
        "a list": ([1], "another layout"),
        "a tensor": (torch.zeros(3), "another layout"),
        "elsewhere": ({"model": moco_state()}, "no entry 'state_dict'"),
        "odd entries": ({("a", 1): 1, 3: 4, None: 5, 1e400: 6}, PLAIN),
        "entry of 1 MB": ({"\x1b[2J" + "a" * 10**6: 1}, "no entry 'state_dict'"),
        "bytes": ({"state_dict": {b"a": one}}, PLAIN),
        "set": ({"state_dict": {"a": {1}}}, "no state dict of tensors"),
        "a list inside": ({"state_dict": [1]}, "no state dict of tensors"),
        "numbers": ({"state_dict": {"a": 1}}, "no state dict of tensors"),
        "nothing": ({"state_dict": {}}, "no state dict of tensors"),
        "keys that are numbers": ({"state_dict": {1: one}}, "no state dict of tensors"),
        "key of 1 MB": ({"state_dict": {"a" * 10**6: one}}, "at most 256 printable"),
        "key that a terminal obeys": ({"state_dict": {"\x1b[2J": one}}, "at most 256 printable"),
    }


def odd_states() -> dict[str, tuple[object, str]]:
    good, first = moco_state(), "module.momentum_encoder.fc.0.weight"
    hidden: OrderedDict[str, Any] = OrderedDict(good)
    hidden.values = hidden.keys = 3  # type: ignore
    other = {key.replace("conv1", "conv9"): value for key, value in good.items()}
    states: dict[str, tuple[dict[str, Any], str]] = {
        "attributes for methods": (hidden, ""),
        "NaN": (good | {first: good[first] * float("nan")}, "holds NaN"),
        "infinity": (good | {first: good[first] / 0}, "holds NaN"),
        "unknown key": (good | {"module.x.y": good[first]}, "keys that this layout"),
        "another architecture": (other, "does not fit test_resnet"),
    }
    return {name: ({"state_dict": state}, reason) for name, (state, reason) in states.items()}


def odd_heads() -> dict[str, tuple[object, str]]:
    one, scalar = torch.zeros(1), torch.tensor(1.0)
    wide, square = torch.zeros(1).expand(2**16, 2**16), torch.zeros(96, 96)
    changes: dict[str, tuple[str, torch.Tensor, str]] = {
        "4 billion layers": ("4000000000.weight", one, "beyond 100"),
        "10^200 layers": ("9" * 200 + ".weight", one, "beyond 100"),
        "superscript layer": ("\u00b2.weight", one, "not NUMBER.NAME"),
        "Arabic layer": ("\u0663.weight", one, "not NUMBER.NAME"),
        "negative layer": ("-1.weight", one, "not NUMBER.NAME"),
        "layer without a name": ("7", one, "not NUMBER.NAME"),
        "layer of 16 GB in 4 bytes": ("0.weight", wide, "its tensors claim"),
        "norm without dimensions": ("1.running_mean", scalar, "neither Linear nor BatchNorm1d"),
        "weight without dimensions": ("0.weight", scalar, "neither Linear nor BatchNorm1d"),
        "layer of another width": ("0.weight", torch.zeros(5, 7), "do not fit together"),
        "layer of no width": ("0.weight", torch.zeros(0, 96), "do not fit together"),
        "layer of whole numbers": ("0.weight", square.long(), ""),
        "layer of complex numbers": ("0.weight", square * 1j, "holds torch.complex64"),
        "layer of float8": ("0.weight", square.to(torch.float8_e4m3fn), "holds torch.float8"),
        "sparse layer": ("0.weight", square.to_sparse(), PLAIN),
    }
    prefix = "module.momentum_encoder.fc."
    return {
        name: ({"state_dict": moco_state() | {prefix + key: value}}, reason)
        for name, (key, value, reason) in changes.items()
    }


def folder_cases() -> list[Case]:
    """Folders of timm, and of a converted teacher, whose description or weights have a slip."""
    state = timm.create_model("test_vit", num_classes=0).state_dict()
    first = next(iter(state))
    ours = {f"backbone.{key}": value for key, value in state.items()}
    broken = {f"backbone.{first}": state[first] * float("nan")}
    facts: dict[str, Any] = {"architecture": "test_vit"}
    asked: dict[str, tuple[object, str]] = {
        "depth of 3000": ({"depth": 3000}, "at most 300"),
        "depth of 250": ({"depth": 250}, "than its weights of"),
        "depth that is none": ({"depth": float("nan")}, "depth is nan"),
        "width of 60,000": ({"embed_dim": 60_000}, "than its weights of"),
        "width of 10^9": ({"embed_dim": 10**9}, "at most 65536"),
        "image of 10^5": ({"img_size": [10**5, 10**5]}, "at most 65536"),
        "a file of its own": ({"checkpoint_path": "/dev/zero"}, "checkpoint_path"),
        "another description": ({"pretrained_cfg_overlay": {"file": "/dev/zero"}}, "cannot load"),
        "pretrained": ({"pretrained": True}, "pretrained"),
        "arguments that are none": ([1], "cannot load"),
    }
    folders: dict[str, tuple[dict[str, bytes], str]] = {
        f"timm, {name}": (
            {
                "config.json": json.dumps(timm_facts(model_args=arguments)).encode(),
                "model.safetensors": save(state),
            },
            reason,
        )
        for name, (arguments, reason) in asked.items()
    }
    texts = {"deep": "[" * 100_000, "long": " " * 2_000_000, "a list": "[]", "no text": "\udc80"}
    for name, text in texts.items():
        raw = text.encode(errors="surrogateescape")
        weights = save(state)
        folders |= {
            f"timm, {name}": ({"config.json": raw, "model.safetensors": weights}, "cannot load"),
            f"ours, {name}": ({"teacher.json": raw, "teacher.safetensors": weights}, "no complete"),
        }
    for name, raw in {
        "header of 2^63": struct.pack("<Q", 2**63) + b"{}",
        "header of 4 MB + 1": struct.pack("<Q", 4 * 2**20 + 1) + b"{" * 5 * 2**20,
        "NaN": save(ours | broken),
        "float8": save(ours | {f"backbone.{first}": state[first].to(torch.float8_e5m2)}),
        "nothing": b"",
        "a weight missing": save({key: value for key, value in ours.items() if first not in key}),
    }.items():
        files = {"teacher.json": json.dumps(facts).encode(), "teacher.safetensors": raw}
        folders[f"ours, {name}"] = files, "no complete teacher|keys missing"
    return [
        Case(f"teacher's folder: {name}", teacher_folder(files), reason)
        for name, (files, reason) in folders.items()
    ]


def odd_file_cases() -> list[Case]:
    """Folders with a file that is none, or a config.json that asks for more than a pickle holds."""
    state = timm.create_model("test_vit", num_classes=0).state_dict()
    ours = {f"backbone.{key}": value for key, value in state.items()}
    timms = {"config.json": json.dumps(timm_facts()).encode(), "model.safetensors": save(state)}
    wide = json.dumps(timm_facts(model_args={"embed_dim": 60_000})).encode()
    deep = json.dumps(timm_facts(pretrained_cfg={"input_size": [60_000, 64, 64]})).encode()
    converted = {
        "teacher.json": json.dumps({"architecture": "test_vit"}).encode(),
        "teacher.safetensors": save(ours),
    }
    cases: dict[str, tuple[dict[str, bytes], Callable[[Path], None], str]] = {
        "config is a pipe": (timms, pipe("config.json"), "expected a regular file"),
        "config is endless": (timms, endless("config.json"), "expected a regular file"),
        "config of 3 GiB": (timms, sparse("config.json"), "at most 1000000"),
        "facts of 3 GiB": (converted, sparse("teacher.json"), "at most 1000000"),
        "facts are a pipe": (converted, pipe("teacher.json"), "cannot load"),
        "converted weights are a pipe": (converted, pipe("teacher.safetensors"), "no teacher file"),
        "weights are a pipe": (timms, pipe("model.safetensors"), "expected a regular file"),
        "weights are endless": (timms, endless("model.safetensors"), "expected a regular file"),
        "width of 60,000, of a pickle": (
            {"config.json": wide, "pytorch_model.bin": saved(state)},
            lambda _: None,
            "than its weights of",
        ),
        "60,000 channels": (timms | {"config.json": deep}, lambda _: None, "than its weights of"),
        "width of 60,000, of 3 TiB": (
            timms | {"config.json": wide},
            sparse("model.safetensors", 1024 * SPARSE),
            "more than the 7000000000",
        ),
        **{
            f"pickle whose storage is {name}": (
                {"config.json": timms["config.json"], "pytorch_model.bin": content},
                lambda _: None,
                "cannot load",
            )
            for name, content in borrowed_memory().items()
        },
    }
    return [
        Case(f"teacher's folder: {name}", teacher_folder(files, change), reason)
        for name, (files, change, reason) in cases.items()
    ]


def pipe(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def endless(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to("/dev/zero")

    return change


def sparse(name: str, size: int = SPARSE) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, size)


def timm_facts(**changed: object) -> dict[str, object]:
    cfg = {"num_classes": 0, "input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.5] * 3}
    return {"architecture": "test_vit", "num_classes": 0, "pretrained_cfg": cfg} | changed


def teacher_folder(
    files: dict[str, bytes], change: Callable[[Path], None] = lambda _: None
) -> Callable[[Path], Read]:
    def prepare(place: Path) -> Read:
        folder = place / "input"
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        change(folder)
        return lambda: pcd_hub.load_teacher(f"local-dir:{folder}", image_size=160)

    return prepare


def source_cases() -> list[Case]:
    """Sources that name no file of ours."""
    sources = {
        "NUL": "mocov3:test_resnet:\0",
        "long file": "mocov3:test_resnet:" + "a" * 5000,
        "a device": "mocov3:test_resnet:/dev/zero",
        "a folder": "mocov3:test_resnet:/",
        "no file": "mocov3:test_resnet:",
        "no architecture": "mocov3:",
        "source as architecture": "mocov3:hf-hub/evil:/dev/null",
        "empty": "",
        "a URL": "https://evil.example/x.pth",
        "timm, a path": "timm:../../x",
    }
    return [
        Case(
            f"source: {name}",
            lambda _, s=source: lambda: pcd_hub.load_teacher(s, image_size=64),
            "no teacher file|needs an architecture|unknown teacher|timm has no",
        )
        for name, source in sources.items()
    ]
