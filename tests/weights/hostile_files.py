"""Hostile files, each with the check that must refuse it and the reason that it must give."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch

from pcd_hub.files import strict_json
from pcd_hub.weights import safety, tensors


class Valid(NamedTuple):
    """What a hostile input is made of: the files of an export of ``test_vit``."""

    weights: bytes
    config: dict[str, Any]
    manifest: dict[str, Any]


def files_of(folder: Path) -> Valid:
    names = ("config.json", "pcd_manifest.json")
    config, manifest = (json.loads((folder / name).read_text()) for name in names)
    needed = ("config.json", "model.safetensors")
    manifest["files"].sort(key=lambda file: [*needed, file["path"]].index(file["path"]))
    return Valid((folder / "model.safetensors").read_bytes(), config, manifest)


class HostileFile(NamedTuple):
    name: str
    check: Callable[..., Any]
    build: Callable[[Valid], Any]
    reason: str


def encoded(value: Any) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def packed(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = encoded(header)
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: Any, shape: Any, begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def name_cases() -> list[HostileFile]:
    odd = {
        "parent": "../x",
        "absolute": "/x",
        "parent inside": "a/../../x",
        "backslash": "..\\x",
        "double slash": "a//b",
        "current folder": "./c.png",
        "NUL": "model.safetensors\0",
        "newline": "config.json\n",
        "escape sequence": "\x1b[2J.png",
        "bidi override": "a\u202egnp.png",
        "cache folder": ".cache/huggingface/x",
        "home": "~/.x",
        "long": "a" * 300 + ".png",
        "very long": "a" * 10**6,
        "percent encoded": "%2e%2e/x",
        "percent encoded slash": "..%2fx.png",
        "git hook": ".git/hooks/post-checkout",
        "git": ".git",
        "git attributes": ".gitattributes",
        "env": ".env",
        "empty": "",
        "dot": ".",
        "dots": "..",
        "pickle": "pytorch_model.bin",
        "python": "setup.py",
        "svg": "a.svg",
        "double extension": "a.png.exe",
        "no stem": ".png",
        "device of Windows": "con.png",
        "port of Windows": "com1.png",
        "stream of Windows": "config.json::$DATA",
        "trailing dot": "config.json.",
        "trailing space": "config.json ",
        "upper case": "Config.json",
        "upper case picture": "A.png",
        "full width": "\uff43onfig.json",
        "Kelvin sign": "LICEN\u212aE",
        "long s": "con\u017fig.json",
        "surrogate": "\ud800.png",
        "shell": "$(id).png",
    }
    cases = [
        HostileFile(
            f"name: {name}",
            safety.check_file_names,
            lambda _, n=value: [n],
            "not a file of a weight",
        )
        for name, value in odd.items()
    ]
    lists = {
        "twice": (["a.png", "config.json", "a.png"], "'a.png' is listed twice"),
        "case-fold twin": (["README.md", "readme.md"], "'readme.md' is not a file"),
        "too many": ([f"{i}.png" for i in range(51)], "expected at most 50 files"),
    }
    return cases + [
        HostileFile(f"names: {name}", safety.check_file_names, lambda _, n=names: n, reason)
        for name, (names, reason) in lists.items()
    ]


def json_cases() -> list[HostileFile]:
    def check(raw: bytes, *, what: str) -> None:
        strict_json.parse_json(raw, what=what, max_bytes=1_000_000)

    inputs = {
        "empty": (b"", "Expecting value"),
        "not UTF-8": (b'"\xff"', "can't decode byte 0xff"),
        "overlong UTF-8": (b'"\xc0\xaf"', "can't decode byte 0xc0"),
        "UTF-16": ("{}".encode("utf-16"), "can't decode byte"),
        "mark": (b"\xef\xbb\xbf{}", "byte order mark"),
        "key twice": (b'{"a": 1, "a": 2}', "'a' is repeated"),
        "key twice, escaped": (b'{"a": 1, "\\u0061": 2}', "'a' is repeated"),
        "key twice, deep": (b'[{"b": {"a": 1, "a": 2}}]', "'a' is repeated"),
        "NaN": (b"[NaN]", "'NaN' is not finite"),
        "infinity": (b"-Infinity", "'-Infinity' is not finite"),
        "overflow": (b"[1e400]", "'1e400' is not finite"),
        "65 levels": (b"[" * 65 + b"]" * 65, "deeper than 64"),
        "100,000 lists": (b"[" * 100_000, "deeper than 64"),
        "100,000 objects": (b'{"a":' * 100_000, "deeper than 64"),
        "deep after a string": (b'["\\"[", ' + b"[" * 100_000, "deeper than 64"),
        "deep in a broken string": (b'"\\' + b"[" * 100_000, "Invalid"),
        "quotes": (b'"' * 999_999, "Extra data"),
        "escaped quotes": (b'"' + b'\\"' * 499_999, "Unterminated"),
        "backslash at the end": (b'"\\', "Unterminated"),
        "21 digits": (b"1" * 21, "at most 20 digits"),
        "5,000 digits": (b"-" + b"1" * 5_000, "at most 20 digits"),
        "999,999 digits": (b"1" * 999_999, "at most 20 digits"),
        "minus zero": (b"[-0]", "'-0' is not an integer"),
        "lone surrogate": (b'["\\ud800"]', "surrogates not allowed"),
        "lone surrogate as key": (b'{"\\udfff": 1}', "surrogates not allowed"),
        "control character": (b'"\x1b"', "Invalid control character"),
        "trailing comma": (b"[1,]", "JSON"),
        "single quotes": (b"{'a': 1}", "property name"),
        "comment": (b"{} // x", "Extra data"),
        "two values": (b"{}{}", "Extra data"),
        "NUL at the end": (b"{}\0", "Extra data"),
        "pickle": (b"\x80\x04\x95cos\nsystem\n", "can't decode byte 0x80"),
        "too long": (b" " * 1_000_001, "1000001 bytes, expected at most 1000000"),
    }
    return [
        HostileFile(f"json: {name}", check, lambda _, r=raw: r, reason)
        for name, (raw, reason) in inputs.items()
    ]


def changed(root: Any, path: str, value: Any) -> Any:
    """A deep copy with the value at ``a.0.b`` set, or removed if it is ``...``."""
    root = json.loads(json.dumps(root))
    if value == "...":
        return root | {f"{path}{i}": i for i in range(51)}
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    place = root
    for key in parents:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return root


def manifest_cases() -> list[HostileFile]:
    file = {"path": "a.png", "size": 1, "sha256": "0" * 64}
    changes = {
        "newer schema": ("schema", 2, "schema is 2, expected 1: made by a newer pcd_hub; upgrade"),
        "true as schema": ("schema", True, "schema is True; it must be 1"),
        "fraction as schema": ("schema", 1.0, "schema is 1.0; it must be 1"),
        "no schema": ("schema", ..., "has no schema"),
        "no record": ("record", ..., "has no record"),
        "record a list": ("record", [], r"record is \[\]; it must be an object"),
        "51 unknown keys": ("x", "...", "holds 51 unknown keys, expected at most 50"),
        "unknown key of a terminal": ("\x1b[2J", 1, r"holds '\\x1b\[2J'; expected a short plain"),
        "unknown key of 1 MB": ("a" * 900_000, 1, "expected a short plain key"),
        "odd key of a file": ("files.0.\u202e", 1, r"file 0 holds '\\u202e'; expected a short"),
        "files a number": ("files", 3, "files is 3"),
        "no files": ("files", [], "files is"),
        "file a string": ("files.0", "config.json", "files is"),
        "51 files": ("files", [file] * 51, "files is"),
        "path missing": ("files.0.path", ..., "file 0 has no path"),
        "path a list": ("files.0.path", ["x"], "path is"),
        "path outside": ("files.0.path", "../secret", "'../secret' is not a file"),
        "path absolute": ("files.0.path", "/etc/passwd", "'/etc/passwd' is not a file"),
        "itself": ("files.0.path", "pcd_manifest.json", "listed twice"),
        "file twice": ("files.1.path", "config.json", "'config.json' is listed twice"),
        "no weights": ("files.1.path", "a.png", "model.safetensors is not listed"),
        "no config": ("files.0.path", "a.png", "config.json is not listed"),
        "true as size": ("files.0.size", True, "size is True"),
        "negative size": ("files.0.size", -1, "size is -1"),
        "fraction as size": ("files.0.size", 1.5, "size is 1.5"),
        "5 GB": ("files.0.size", 5 * 10**9, "size is 5000000000"),
        "upper-case sha256": ("files.0.sha256", "A" * 64, "64 lower-case hex"),
        "short sha256": ("files.0.sha256", "0" * 8, "64 lower-case hex"),
        "sha256 with a newline": ("files.0.sha256", "0" * 64 + "\n", "64 lower-case hex"),
        "sha256 in other digits": ("files.0.sha256", "\u0660" * 64, "64 lower-case hex"),
    }
    cases = [
        HostileFile(
            f"manifest: {name}",
            safety.check_manifest,
            lambda v, p=path, new=value: encoded(changed(v.manifest, p, new)),
            reason,
        )
        for name, (path, value, reason) in changes.items()
    ]
    whole = {
        "list": (b"[]", "not an object"),
        "null": (b"null", "not an object"),
        "string": (b'"\\u001b[2J"', "not an object"),
        "deep": (b'{"schema":' * 100_000, "deeper"),
        "schema twice": (b'{"schema": 2, "schema": 1}', "is repeated"),
        "1 MB": (b'{"record": "' + b"a" * 10**6 + b'"}', "at most 1000000"),
    }
    return cases + [
        HostileFile(f"manifest: {name}", safety.check_manifest, lambda _, r=raw: r, reason)
        for name, (raw, reason) in whole.items()
    ]


def config_cases() -> list[HostileFile]:
    cfg = "pretrained_cfg."
    changes = {
        "unknown architecture": ("architecture", "test_vit9", "did you mean 'test_vit"),
        "source as architecture": ("architecture", "hf-hub:evil/x", "architecture is 'hf-hub:"),
        "folder as architecture": ("architecture", "local-dir:/tmp", "architecture is 'local-dir:"),
        "tag in the architecture": ("architecture", "resnet18.a1_in1k", "architecture is"),
        "control characters": ("architecture", "\x1b]0;x\x07", r"architecture is '\\x1b\]0"),
        "architecture a list": ("architecture", ["test_vit"], "architecture is"),
        "architecture of 1 MB": ("architecture", "a" * 900_000, "architecture is"),
        "two architectures": ("architecture", "resnet18", "in pretrained_cfg test_vit"),
        "classes": ("num_classes", 1000, "num_classes is 1000"),
        "false as no classes": ("num_classes", False, "num_classes is False"),
        "no features": ("num_features", 0, "num_features is 0"),
        "too many features": ("num_features", 10**9, "num_features is 1000000000"),
        "no pcd": ("pcd", ..., "has no pcd"),
        "pcd a list": ("pcd", [], "pcd is"),
        "label_names at the root": ("label_names", ["x"], "holds 'label_names'"),
        "source at the root": ("source", "url", "holds 'source'"),
        "unknown key of a terminal": ("\x1b[2J", 1, "expected a short plain key"),
        "transformers code": ("auto_map", {"AutoModel": "evil.py"}, "holds 'auto_map'"),
        "pickle beside": ("hf_hub_filename", "evil.bin", "holds 'hf_hub_filename'"),
        "cfg missing": ("pretrained_cfg", ..., "has no pretrained_cfg"),
        "cfg a list": ("pretrained_cfg", [1], "pretrained_cfg is"),
        "args a list": ("model_args", ["img_size"], "model_args is"),
        "args null": ("model_args", None, "model_args is"),
        "depth 3000": ("model_args.depth", 3000, "holds 'depth'"),
        "checkpoint_path": ("model_args.checkpoint_path", "/x.bin", "holds 'checkpoint_path'"),
        "overlay": ("model_args.pretrained_cfg_overlay", {"url": "x"}, "holds 'pretrained_cfg_ov"),
        "cache_dir": ("model_args.cache_dir", "/", "holds 'cache_dir'"),
        "scriptable": ("model_args.scriptable", True, "holds 'scriptable'"),
        "huge image": ("model_args.img_size", 10**6, "img_size is 1000000"),
        "tiny image": ("model_args.img_size", 1, "img_size is 1;"),
        "true as image size": ("model_args.img_size", True, "img_size is True"),
        "image size a list": ("model_args.img_size", [64, 64], "img_size is"),
        "image size of three": ("model_args.img_size", [64, 96, 96], "img_size is"),
        "huge width": ("model_args.img_size", [64, 10**6], "img_size is"),
        "width a list": ("model_args.img_size", [64, [96]], "img_size is"),
        "true as height": ("model_args.img_size", [True, 96], "img_size is"),
        "url": (cfg + "url", "https://evil.example/x.pth", "pretrained_cfg holds 'url'"),
        "null url": (cfg + "url", None, "holds 'url'"),
        "file": (cfg + "file", "/etc/passwd", "holds 'file'"),
        "state_dict": (cfg + "state_dict", {}, "holds 'state_dict'"),
        "hf_hub_id": (cfg + "hf_hub_id", "evil/x", "holds 'hf_hub_id'"),
        "hf_hub_filename": (cfg + "hf_hub_filename", "../../x", "holds 'hf_hub_filename'"),
        "source": (cfg + "source", "url", "holds 'source'"),
        "origin_url": (cfg + "origin_url", "https://x", "holds 'origin_url'"),
        "label_names": (cfg + "label_names", ["x"], "holds 'label_names'"),
        "custom_load": (cfg + "custom_load", True, "custom_load is True"),
        "custom_load hf": (cfg + "custom_load", "hf", "custom_load is 'hf'"),
        "zero as custom_load": (cfg + "custom_load", 0, "custom_load is 0"),
        "classes in cfg": (cfg + "num_classes", 1000, "num_classes is 1000"),
        "no num_classes in cfg": (cfg + "num_classes", ..., "has no num_classes"),
        "foreign tag": (cfg + "tag", "a1_in1k", "tag is 'a1_in1k'"),
        "tag with a path": (cfg + "tag", "pcd_../x", "tag is"),
        "architecture in cfg": (cfg + "architecture", "resnet18", "in pretrained_cfg resnet18"),
        "one channel": (cfg + "input_size", [1, 64, 64], "input_size is"),
        "two numbers": (cfg + "input_size", [3, 64], "input_size is"),
        "size of strings": (cfg + "input_size", ["3", "64", "64"], "input_size is"),
        "size of 2^40": (cfg + "input_size", [3, 2**40, 64], "input_size is"),
        "size zero": (cfg + "input_size", [3, 0, 64], "input_size is"),
        "unknown interpolation": (cfg + "interpolation", "magic", "interpolation is 'magic'"),
        "unhashable interpolation": (cfg + "interpolation", {}, "interpolation is {}"),
        "crop 0": (cfg + "crop_pct", 0, "crop_pct is 0"),
        "crop 3": (cfg + "crop_pct", 3.0, "crop_pct is 3.0"),
        "crop a string": (cfg + "crop_pct", "0.9", "crop_pct is '0.9'"),
        "unknown crop mode": (cfg + "crop_mode", "x", "crop_mode is"),
        "mean of two": (cfg + "mean", [0.5, 0.5], "mean is"),
        "mean of 300": (cfg + "mean", [300, 0, 0], "mean is"),
        "mean of strings": (cfg + "mean", ["a"] * 3, "mean is"),
        "std of zero": (cfg + "std", [0, 1, 1], "std is"),
        "std of denormals": (cfg + "std", [1e-310] * 3, "std is"),
        "std true": (cfg + "std", [True] * 3, "std is"),
        "pool of strings": (cfg + "pool_size", ["7", "7"], "pool_size is"),
        "classifier a path": (cfg + "classifier", "../x", "classifier is"),
        "classifier an object": (cfg + "classifier", {"a": 1}, "classifier is"),
        "100 first_convs": (cfg + "first_conv", ["a"] * 100, "first_conv is"),
        "fixed a number": (cfg + "fixed_input_size", 1, "fixed_input_size is 1"),
        "long description": (cfg + "description", "a" * 501, "description is"),
        "terminal in the licence": (cfg + "license", "\x1b[2J", "license is"),
    }
    cases = [
        HostileFile(
            f"config: {name}",
            safety.check_config,
            lambda v, p=path, new=value: encoded(changed(v.config, p, new)),
            reason,
        )
        for name, (path, value, reason) in changes.items()
    ]
    whole = {
        "list": (b"[]", "not an object"),
        "number": (b"1", "not an object"),
        "deep": (b'{"pcd":' * 100_000, "deeper"),
        "key twice": (b'{"architecture": "resnet18", "architecture": "x"}', "is repeated"),
        "1 MB": (b'{"pcd": "' + b"a" * 10**6 + b'"}', "at most 1000000"),
    }
    alias = "vit_base_resnet50_384"
    return [
        *cases,
        *(
            HostileFile(f"config: {name}", safety.check_config, lambda _, r=raw: r, reason)
            for name, (raw, reason) in whole.items()
        ),
        HostileFile(
            "config: old alias",
            safety.check_config,
            lambda v: encoded(v.config).replace(b'"test_vit"', encoded(alias)),
            f"has no architecture '{alias}'",
        ),
    ]


F4 = entry("F32", [1], 0, 4)


def header_cases() -> list[HostileFile]:
    inputs = {
        "empty": (b"", "has 0 bytes"),
        "7 bytes": (b"\2" + b"\0" * 6, "has 7 bytes"),
        "length only": (struct.pack("<Q", 2), "has 8 bytes"),
        "length 0": (packed(b""), "header of 0"),
        "length 1": (packed(b"{"), "header of 1"),
        "length 2^64-1": (packed({}, length=2**64 - 1), "header of 18446744073709551615"),
        "length 2^63": (packed({}, length=2**63), "header of 9223372036854775808"),
        "length 100 MB": (packed({}, length=100_000_001), "header of 100000001"),
        "length beyond the file": (packed({}, length=3), "header of 3"),
        "header over 1 MB": (packed(b"{" + b" " * 2**20 + b"}"), "at most 1048576"),
        "not UTF-8": (packed(b'{"\xff": 1}'), "decode byte 0xff"),
        "open brace": (packed(b"{ "), "JSON"),
        "list": (packed(b"[]"), "begins with"),
        "null": (packed(b"null"), "begins with"),
        "mark": (packed(b"\xef\xbb\xbf{}"), "begins with"),
        "leading space": (packed(b" {}"), "begins with"),
        "NUL padding": (packed(b"{}\0\0"), "Extra data"),
        "two headers": (packed(b"{}{}"), "Extra data"),
        "deep": (packed(b'{"a":' * 100_000), "deeper than 64"),
        "deep metadata": (packed(b'{"__metadata__":' + b"[" * 100_000), "deeper than 64"),
        "entry null": (packed({"a": None}), "a is None, not an object"),
        "entry a list": (packed({"a": []}), "not an object"),
        "dtype missing": (packed({"a": {"shape": [], "data_offsets": [0, 4]}}), "has no dtype"),
        "shape missing": (packed({"a": {"dtype": "U8", "data_offsets": [0, 1]}}), "has no shape"),
        "offsets missing": (packed({"a": {"dtype": "U8", "shape": [0]}}), "has no data_offsets"),
        "unknown key of a tensor": (packed({"a": {**F4, "url": 1}}, b"1234"), "holds 'url'"),
        "tensor twice": (
            packed(b'{"a":%b,"a":%b}' % (encoded(F4), encoded(F4)), b"1234"),
            "'a' is repeated",
        ),
        "tensor twice, escaped": (
            packed(b'{"a":%b,"\\u0061":%b}' % (encoded(F4), encoded(F4)), b"1234"),
            "'a' is repeated",
        ),
        "shape twice": (
            packed(b'{"a":{"dtype":"U8","shape":[2],"shape":[1],"data_offsets":[0,1]}}', b"1"),
            "'shape' is repeated",
        ),
        "overlap": (packed({"a": F4, "b": entry("F32", [1], 2, 6)}, b"123456"), "an overlap"),
        "same bytes": (packed({"a": F4, "b": F4}, b"1234"), "an overlap"),
        "inside": (
            packed({"a": entry("F32", [2], 0, 8), "b": entry("F32", [1], 4, 8)}, b"12345678"),
            "an overlap",
        ),
        "hole at the start": (packed({"a": entry("F32", [1], 4, 8)}, b"12345678"), "a hole"),
        "hole in the middle": (
            packed({"a": F4, "b": entry("F32", [1], 8, 12)}, b"123456789012"),
            "begins at byte 8, expected 4: a hole",
        ),
        "trailing bytes": (packed({"a": F4}, b"1234PK\3\4"), "take 4 bytes, the file has 8"),
        "two bytes short": (packed({"a": F4}, b"12"), "take 4 bytes, the file has 2"),
        "no tensors but bytes": (packed({}, b"x"), "take 0 bytes, the file has 1"),
        "offsets beyond the file": (packed({"a": entry("F32", [1], 96, 100)}, b"1234"), "a hole"),
        "negative offset": (packed({"a": entry("F32", [1], -4, 0)}, b"1234"), "data_offsets is"),
        "reversed offsets": (packed({"a": entry("F32", [1], 4, 0)}, b"1234"), "gives -4"),
        "huge offset": (packed({"a": entry("F32", [1], 0, 2**63)}, b"1234"), "data_offsets is"),
        "fraction as offset": (packed({"a": entry("F32", [1], 0, 4.0)}, b"1234"), "data_offsets"),
        "one offset": (
            packed({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, b"1234"),
            "data_offsets is",
        ),
        "mismatch of shape": (packed({"a": entry("F32", [2], 0, 4)}, b"1234"), "needs 8 bytes"),
        "mismatch of dtype": (packed({"a": entry("F64", [1], 0, 4)}, b"1234"), "needs 8 bytes"),
        "product overflows": (
            packed({"a": entry("F32", [2**31, 2**31, 4, 1], 0, 4)}, b"1234"),
            "larger than 2147483648",
        ),
        "bytes overflow": (packed({"a": entry("F64", [2**31, 2], 0, 0)}), "larger than"),
        "zero size, huge": (packed({"a": entry("F32", [0, 2**31, 2**31], 0, 0)}), "larger than"),
        "zero size, 2^62": (packed({"a": entry("F32", [2**62, 0], 0, 0)}), "shape is"),
        "negative dim": (packed({"a": entry("F32", [-1], 0, 4)}, b"1234"), "shape is"),
        "two negative dims": (packed({"a": entry("F32", [-1, -1], 0, 4)}, b"1234"), "shape is"),
        "fraction as dim": (packed({"a": entry("F32", [1.0], 0, 4)}, b"1234"), "shape is"),
        "true as dim": (packed({"a": entry("F32", [True], 0, 4)}, b"1234"), "shape is"),
        "minus zero as dim": (
            packed(b'{"a":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}}'),
            "'-0' is not an integer",
        ),
        "nine dims": (packed({"a": entry("F32", [1] * 9, 0, 4)}, b"1234"), "shape is"),
        "shape a string": (packed({"a": entry("F32", "1", 0, 4)}, b"1234"), "shape is"),
        "shape of lists": (packed({"a": entry("F32", [[1]], 0, 4)}, b"1234"), "shape is"),
        "dtype F8": (packed({"a": entry("F8_E4M3", [4], 0, 4)}, b"1234"), "dtype is 'F8_E4M3'"),
        "dtype F4": (packed({"a": entry("F4", [8], 0, 4)}, b"1234"), "dtype is 'F4'"),
        "dtype C64": (packed({"a": entry("C64", [1], 0, 8)}, b"12345678"), "dtype is 'C64'"),
        "dtype U64": (packed({"a": entry("U64", [1], 0, 8)}, b"12345678"), "dtype is 'U64'"),
        "dtype in lower case": (packed({"a": entry("f32", [1], 0, 4)}, b"1234"), "dtype is 'f32'"),
        "dtype unhashable": (packed({"a": entry([], [1], 0, 4)}, b"1234"), r"dtype is \[\]"),
        "name empty": (packed({"": F4}, b"1234"), "not a tensor's name"),
        "name with a path": (packed({"../x": F4}, b"1234"), "not a tensor's name"),
        "name with a NUL": (packed({"a\0": F4}, b"1234"), "not a tensor's name"),
        "name with a newline": (packed({"a\n": F4}, b"1234"), "not a tensor's name"),
        "name with an escape": (packed({"\x1b[2J": F4}, b"1234"), "not a tensor's name"),
        "name of 257": (packed({"a" * 257: F4}, b"1234"), "not a tensor's name"),
        "name of 1 MB": (packed({"a" * 10**6: F4}, b"1234"), "not a tensor's name"),
        "name in Cyrillic": (packed({"\u0430": F4}, b"1234"), "not a tensor's name"),
        "metadata a list": (packed({"__metadata__": []}), "__metadata__ is"),
        "metadata null": (packed({"__metadata__": None}), "__metadata__ is"),
        "metadata of numbers": (packed({"__metadata__": {"a": 1}}), "expected strings"),
        "metadata a tensor": (packed({"__metadata__": F4}, b"1234"), "expected strings"),
        "metadata of 65 kB": (packed({"__metadata__": {"a": "b" * 65_000}}), "65001 characters"),
        "metadata of 20 MB": (packed({"__metadata__": {"a": "b" * 20_000_000}}), "at most 1048576"),
        "lone surrogate in metadata": (
            packed(b'{"__metadata__":{"a":"\\ud800"}}'),
            "surrogates not allowed",
        ),
        "metadata twice": (packed(b'{"__metadata__":{},"__metadata__":{}}'), "is repeated"),
        "20,001 tensors": (
            packed(dict.fromkeys(map(str, range(20_001)), 0)),
            "holds 20001 tensors",
        ),
        "200,000 tensors": (
            packed({f"t{i}": entry("U8", [0], 0, 0) for i in range(200_000)}),
            "at most 1048576",
        ),
        "pickle": (b"\x80\x04\x95\x20\0\0\0\0\0\0\0\x8c\5posix\x8c\6system", "header of"),
        "zip": (b"PK\3\4" + b"\0" * 100, "header of"),
    }
    return [
        HostileFile(f"header: {name}", tensors.check_header, lambda _, r=raw: r, reason)
        for name, (raw, reason) in inputs.items()
    ]


def value_cases() -> list[HostileFile]:
    def tensor(values: list[float], dtype: torch.dtype) -> bytes:
        return safetensors.torch.save(
            {"good": torch.ones(2), "bad": torch.tensor(values).to(dtype)}
        )

    nan, infinity = float("nan"), float("inf")
    inputs = {
        "NaN": (tensor([1, nan], torch.float32), "bad has a value that is not finite"),
        "infinity": (tensor([infinity, 1], torch.float32), "bad has a value"),
        "minus infinity in F16": (tensor([1, -infinity], torch.float16), "bad has a value"),
        "NaN in BF16": (tensor([nan, 1], torch.bfloat16), "bad has a value"),
        "NaN in F64": (tensor([nan], torch.float64), "bad has a value"),
        "NaN with a payload": (packed({"bad": F4}, b"\1\0\xa0\xff"), "bad has a value"),
        "too large for float32": (
            safetensors.torch.save({"bad": torch.tensor([1e300], dtype=torch.float64)}),
            "not finite in float32",
        ),
        "truth 2": (packed({"a": entry("BOOL", [2], 0, 2)}, b"\0\2"), "neither 0 nor 1"),
        "truth 255": (
            packed({"b": entry("BOOL", [1], 4, 5), "a": F4}, b"\0\0\0\0\xff"),
            "b has a bool",
        ),
        "bad header": (packed({"a": F4}, b"1"), "take 4 bytes"),
    }
    return [
        HostileFile(f"values: {name}", tensors.load_tensors, lambda _, r=raw: r, reason)
        for name, (raw, reason) in inputs.items()
    ]


def fit_cases() -> list[HostileFile]:
    def check(arguments: tuple[Any, ...], *, what: str) -> None:
        found, architecture, model_args = arguments
        needed = tensors.needed_shapes(architecture, model_args, what=what)
        tensors.check_fit(found, needed, what=what)

    def shapes(v: Valid) -> dict[str, tuple[int, ...]]:
        return tensors.check_header(v.weights, what="valid")

    vit, size = "test_vit", {"img_size": 160}
    bare = {"norm.weight", "norm.bias"}
    builds: dict[str, tuple[Callable[[Valid], Any], str]] = {
        "two missing": (
            lambda v: ({k: s for k, s in shapes(v).items() if k not in bare}, vit, size),
            "2 tensors are missing, first 'norm.weight' .here absent",
        ),
        "a head": (
            lambda v: ({**shapes(v), "head.weight": (10, 64)}, vit, size),
            r"1 tensors are unexpected, first 'head.weight' .here \(10, 64\)",
        ),
        "odd name": (lambda v: ({**shapes(v), "\x1b": ()}, vit, size), r"first '\\x1b'"),
        "other shape": (
            lambda v: ({**shapes(v), "norm.bias": (1,)}, vit, size),
            r"1 tensors are of another shape, first 'norm.bias' .here \(1,\), in its .* \(64,\)",
        ),
        "broadcastable shape": (
            lambda v: ({**shapes(v), "norm.bias": (1, 64)}, vit, size),
            "another shape",
        ),
        "other image size": (lambda v: (shapes(v), vit, {"img_size": 64}), "first 'pos_embed'"),
        "other architecture": (
            lambda v: (shapes(v), "resnet18", {}),
            "120 tensors are missing, first 'conv1.weight'",
        ),
        "giant architecture": (
            lambda v: (shapes(v), "vit_gigantic_patch14_224", {}),
            "another shape|missing",
        ),
        "nothing": (lambda _: ({}, vit, size), "are missing"),
        "size that it cannot take": (
            lambda v: (shapes(v), "resnet18", {"img_size": 64}),
            "timm cannot build resnet18 with {'img_size': 64}: TypeError",
        ),
        "depth 3000": (lambda v: (shapes(v), vit, {"depth": 3000}), "holds 'depth'"),
        "source": (lambda v: (shapes(v), "hf-hub:evil/x", {}), "no architecture 'hf-hub:evil/x'"),
        "folder": (lambda v: (shapes(v), "local-dir:/", {}), "no architecture 'local-dir:/'"),
        "tag": (lambda v: (shapes(v), "resnet18.a1_in1k", {}), "did you mean 'resnet18"),
    }
    return [HostileFile(f"fit: {name}", check, *build) for name, build in builds.items()]


def newer_cases() -> list[HostileFile]:
    """What a newer version may add, and somebody hostile too: accepted, as nothing reads it."""
    sizes = {"path": "onnx/model.onnx", "size": 2**31, "sha256": "0" * 64}
    deep = json.loads("[" * 50 + "]" * 50)
    names = {"subfolder": "pictures/a.png", "dotted picture": "a.b.png", "onnx": "onnx/model.onnx"}
    manifest = {
        "unknown key": ("signature", "x"),
        "unknown key of a file": ("files.0.url", "x"),
        "unknown key, deep": ("signature", deep),
        "unknown key of 800 kB": ("signature", "a" * 800_000),
        "a minor schema": ("minor", 7),
    }
    config = {
        "unknown key": ("pool", "avg"),
        "unknown key, deep": ("pool", deep),
        "unknown key of the cfg": ("pretrained_cfg.new_source", "https://evil.example/x.bin"),
        "another record": ("pcd", {"name": "\x1b[2J", "steps": 10**9}),
    }
    return [
        *(
            HostileFile(f"name: {name}", safety.check_file_names, lambda _, n=value: [n], "")
            for name, value in names.items()
        ),
        *(
            HostileFile(
                f"manifest: {name}",
                safety.check_manifest,
                lambda v, p=path, new=value: encoded(changed(v.manifest, p, new)),
                "",
            )
            for name, (path, value) in manifest.items()
        ),
        HostileFile(
            "manifest: unknown file",
            safety.check_manifest,
            lambda v: encoded({**v.manifest, "files": [*v.manifest["files"], sizes]}),
            "",
        ),
        *(
            HostileFile(
                f"config: {name}",
                safety.check_config,
                lambda v, p=path, new=value: encoded(changed(v.config, p, new)),
                "",
            )
            for name, (path, value) in config.items()
        ),
    ]


NEWER = newer_cases()
HOSTILE = [
    *name_cases(),
    *json_cases(),
    *manifest_cases(),
    *config_cases(),
    *header_cases(),
    *value_cases(),
    *fit_cases(),
]
