"""Strict checks of the file names and JSON files of a weight from an untrusted source.

Each check takes bytes and returns plain values, or raises a one-line ``WeightError`` that names the
file, the value found and the value expected. This module opens no file and no connection, and
checking a malicious file takes no longer than checking a damaged one.

Known fields are checked strictly. Unknown fields, which a newer pcd_hub may have added, are limited
in number and ignored. A new field does not change ``schema``; a change that older versions would
misread increments it, and older versions reject the file.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import timm
from timm.models import PretrainedCfg

from pcd_hub.data.multiband.names import MAX_BANDS
from pcd_hub.errors import WeightError, nearest, pip_install
from pcd_hub.files.strict_json import (
    OBJECT,
    SHA256,
    TEXT,
    Field,
    check_fields,
    either,
    matching,
    number,
    one_of,
    optional,
    or_null,
    parse_json,
    several,
    shown,
    whole,
)
from pcd_hub.weights.layout import CONFIG_FILE, MANIFEST_FILE, MANIFEST_SCHEMA, TAG, WEIGHTS_FILE

MAX_JSON_BYTES = 1_000_000
"""Size limit of ``config.json`` and ``pcd_manifest.json``."""
MAX_FILES = 50
MAX_FILE_BYTES = 4 * 1024**3
_MAX_OTHER_BYTES = 64 * 1024**2
_MOST_BYTES = {WEIGHTS_FILE: MAX_FILE_BYTES, CONFIG_FILE: MAX_JSON_BYTES}

_DEVICE = r"(?!(?i:con|prn|aux|nul|com\d|lpt\d)(\.|$))"  # reserved names on Windows
_FILE_NAME = re.compile(
    r"model\.safetensors|config\.json|pcd_manifest\.json|README\.md|LICENSE(\.md|\.txt)?"
    rf"|{_DEVICE}[a-z0-9_-]{{1,60}}\.png"
)
_ANY_CASE = re.compile(_FILE_NAME.pattern, re.IGNORECASE)
_PART = rf"{_DEVICE}[A-Za-z0-9_]([A-Za-z0-9_.-]{{0,98}}[A-Za-z0-9_-])?"
_NEW_FILE = re.compile(rf"({_PART}/){{0,3}}{_PART}", re.ASCII)
_CODE = re.compile(
    r"(?i).*\.(bin|pth?|ckpt|pkl|pickle|joblib|np[yz]|pyc?|so|dll|exe|sh|bat|svg|html?)"
)
"""Files that may run code when loaded or opened; never allowed in a weight."""
_KEY = re.compile(r"[A-Za-z0-9_.:-]{1,100}", re.ASCII)
_MAX_UNKNOWN = 50
_OF_TIMM = frozenset(field.name for field in fields(PretrainedCfg))
_OF_OTHERS = _OF_TIMM | {"auto_map", "labels"}
"""Keys in config.json that point timm or transformers to other weights, labels or code."""
_PROSE = Field(
    lambda v: isinstance(v, str) and len(v) <= 500 and v.isprintable(),
    "a printable string of at most 500 characters",
    required=False,
)
_ARCHITECTURE = matching(r"[a-z0-9_]{1,100}", "a timm architecture such as resnet18")
_MODULE = matching(r"[A-Za-z0-9_.]{1,100}", "a module name")
_MODULES = or_null(_MODULE, several(_MODULE, 0, 16))
_SIZE = several(whole(1, 4096), 3, 3)

_MANIFEST = {
    "schema": one_of([MANIFEST_SCHEMA]),
    "files": several(OBJECT, 1, MAX_FILES),
    "record": OBJECT,
}
_LISTED = {
    "path": TEXT,
    "size": whole(0, MAX_FILE_BYTES),
    "sha256": SHA256,
}
_CONFIG = {
    "architecture": _ARCHITECTURE,
    "num_classes": one_of([0]),
    "num_features": optional(whole(1, 65536)),
    "pretrained_cfg": OBJECT,
    "model_args": optional(OBJECT),
    "pcd": OBJECT,
}
_IMAGE_SIDE = whole(8, 1024)
_NOT_SQUARE = Field(
    lambda v: several(_IMAGE_SIDE, 2, 2).fits(v) and v[0] != v[1], "two such integers that differ"
)
_MODEL_ARGS = {
    "img_size": optional(either(_IMAGE_SIDE, _NOT_SQUARE)),
    "in_chans": optional(whole(1, MAX_BANDS)),
}
_PRETRAINED_CFG = {
    "architecture": _ARCHITECTURE,
    "tag": matching(TAG, "pcd[_WHAT] or imported[_WHAT]"),
    "custom_load": one_of([False]),
    "num_classes": one_of([0]),
    "input_size": Field(
        lambda v: _SIZE.fits(v) and v[0] <= MAX_BANDS, "[bands, height, width], up to 64 and 4096"
    ),
    "fixed_input_size": optional(one_of([False, True])),
    "interpolation": one_of(["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]),
    "crop_pct": number(0.01, 2.0),
    "crop_mode": optional(one_of(["center", "squash", "border"])),
    "mean": several(number(0.0, 1.0), 1, MAX_BANDS),
    "std": several(number(0.001, 1.0), 1, MAX_BANDS),
    "pool_size": or_null(several(whole(1, 4096), 2, 2)),
    "first_conv": _MODULES,
    "classifier": _MODULES,
    **dict.fromkeys(("license", "description", "paper_name", "paper_ids"), _PROSE),
}
_KNOWN = {"manifest": _MANIFEST, "config": _CONFIG, "pretrained_cfg": _PRETRAINED_CFG}


def check_file_names(names: Iterable[str], *, what: str) -> None:
    """Check the file names in a manifest, which become paths on disk.

    The known files are ``model.safetensors``, ``config.json``, ``pcd_manifest.json``,
    ``README.md``, ``LICENSE`` (``.md``, ``.txt``) and pictures ``[a-z0-9_-]{1,60}.png``. Other
    files may be relative paths in plain ASCII, such as ``onnx/model.onnx``, unless their type can
    run code when loaded.

    Raises:
        WeightError: If a name is invalid or repeated (ignoring case), or there are too many files.
    """
    seen: set[str] = set()
    for name in names:
        if not (isinstance(name, str) and (_FILE_NAME.fullmatch(name) or _is_new_file(name))):
            raise WeightError(
                f"{what}: {shown(name)} is not a file of a weight; expected {WEIGHTS_FILE}, "
                f"{CONFIG_FILE}, {MANIFEST_FILE}, README.md, LICENSE, .png or another data file"
            )
        if name.casefold() in seen:
            raise WeightError(f"{what}: {shown(name)} is listed twice")
        seen.add(name.casefold())
        if len(seen) > MAX_FILES:
            raise WeightError(f"{what}: expected at most {MAX_FILES} files")


def _is_new_file(name: str) -> bool:
    return (
        _NEW_FILE.fullmatch(name[:500]) is not None
        and not _ANY_CASE.fullmatch(name)
        and not _CODE.fullmatch(name)
    )


def check_listing(names: Iterable[str], *, what: str) -> None:
    """Check the file names in the Hub's listing; only files in the manifest are ever downloaded.

    Raises:
        WeightError: If a name is not a valid path in a repository, or differs from a known file
            name in case only.
    """
    for name in names:
        is_text = isinstance(name, str) and 0 < len(name) <= 300 and name.isprintable()
        if not is_text or "\\" in name or not {"", ".", "..", ".git"}.isdisjoint(name.split("/")):
            raise WeightError(f"{what}: {shown(name)} is not a file name of a repository")
        if _ANY_CASE.fullmatch(name) and not _FILE_NAME.fullmatch(name):
            raise WeightError(
                f"{what}: {shown(name)} differs from a file of a weight in case only; ask its "
                "publisher to remove it"
            )


def unknown_keys(found: Mapping[str, Any], kind: str) -> list[str]:
    """Return the unknown keys in a checked ``manifest``, ``config`` or ``pretrained_cfg``."""
    return sorted(found.keys() - _KNOWN[kind].keys())


def unknown_files(manifest: Mapping[str, Any]) -> list[str]:
    """Return the files in a checked manifest that this version does not use."""
    return [f["path"] for f in manifest["files"] if not _FILE_NAME.fullmatch(f["path"])]


def unknown_fields(found: Mapping[str, Any], known: Iterable[str], *, what: str) -> dict[str, Any]:
    """Return the fields that this version does not know.

    Raises:
        WeightError: If a field's name is too long or not plain ASCII, or there are too many.
    """
    unknown = {key: found[key] for key in found.keys() - set(known)}
    for key in sorted(unknown, key=str):
        if not _KEY.fullmatch(key):
            raise WeightError(f"{what} holds {shown(key)}; expected a short plain key")
    if len(unknown) > _MAX_UNKNOWN:
        raise WeightError(f"{what} holds {len(unknown)} unknown keys, expected at most 50")
    return unknown


def _check_known(found: Any, known: Mapping[str, Field], *, what: str) -> None:
    """Check the known fields of an object, and limit the unknown ones."""
    unknown = unknown_fields(found, known, what=what) if isinstance(found, dict) else {}
    check_fields(
        {k: found[k] for k in found if k not in unknown} if unknown else found, known, what=what
    )


def check_manifest(raw: bytes, *, what: str) -> dict[str, Any]:
    """Check ``pcd_manifest.json`` and return it.

    Raises:
        WeightError: If it is invalid, has a newer schema, lists itself or an invalid name, or lacks
            the weights or the config.
    """
    manifest = parse_json(raw, what=what, max_bytes=MAX_JSON_BYTES)
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if type(schema) is int and schema > MANIFEST_SCHEMA:
        raise WeightError(
            f"{what}: schema is {schema}, expected {MANIFEST_SCHEMA}: made by a newer pcd_hub; "
            f"upgrade it: git pull, and {pip_install()}"
        )
    _check_known(manifest, _MANIFEST, what=what)
    for index, file in enumerate(manifest["files"]):
        _check_known(file, _LISTED, what=f"{what}: file {index}")
    paths = [file["path"] for file in manifest["files"]]
    check_file_names([*paths, MANIFEST_FILE], what=what)
    for needed in (WEIGHTS_FILE, CONFIG_FILE):
        if needed not in paths:
            raise WeightError(f"{what}: {needed} is not listed; publish the weight again")
    for file in manifest["files"]:
        is_known = _FILE_NAME.fullmatch(file["path"])
        most = _MOST_BYTES.get(file["path"], _MAX_OTHER_BYTES if is_known else MAX_FILE_BYTES)
        if file["size"] > most:
            raise WeightError(
                f"{what}: {file['path']} has {file['size']} bytes, expected at most {most}"
            )
    return manifest


def check_config(raw: bytes, *, what: str) -> dict[str, Any]:
    """Check timm's ``config.json`` and return it.

    Raises:
        WeightError: If a known key has an invalid value, a key points to other weights or to code,
            or timm lacks the architecture.
    """
    config = parse_json(raw, what=what, max_bytes=MAX_JSON_BYTES)
    _check_known(config, _CONFIG, what=what)
    _check_not_read(config, _OF_OTHERS - _CONFIG.keys(), what=what)
    cfg, architecture = config["pretrained_cfg"], config["architecture"]
    _check_known(cfg, _PRETRAINED_CFG, what=f"{what}: pretrained_cfg")
    _check_not_read(cfg, _OF_TIMM - _PRETRAINED_CFG.keys(), what=f"{what}: pretrained_cfg")
    check_buildable(architecture, config.get("model_args", {}), what=what)
    in_chans = config.get("model_args", {}).get("in_chans", 3)
    stated = {"input_size": cfg["input_size"][0], "mean": len(cfg["mean"]), "std": len(cfg["std"])}
    for key, count in stated.items():
        if count != in_chans:
            raise WeightError(
                f"{what}: pretrained_cfg: {key} is {shown(cfg[key])}, of {count} bands; the model "
                f"takes {in_chans}"
            )
    if cfg["architecture"] != architecture:
        raise WeightError(
            f"{what}: architecture is {architecture}, in pretrained_cfg {cfg['architecture']}"
        )
    return config


def _check_not_read(found: Mapping[str, Any], keys: Iterable[str], *, what: str) -> None:
    for key in sorted(found.keys() & set(keys)):
        raise WeightError(f"{what} holds {shown(key)}, which pcd_hub never writes; export it again")


def known_cfg(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return the checked ``pretrained_cfg`` without the fields unknown to this version."""
    return {key: value for key, value in cfg.items() if key in _PRETRAINED_CFG}


def check_buildable(architecture: str, model_args: Mapping[str, Any], *, what: str) -> None:
    """Check that timm has the architecture, and that its arguments are known and within limits.

    Raises:
        WeightError: If it does not, or an argument is unknown or out of range.
    """
    known = timm.list_models()  # without deprecated aliases, for which timm warns
    if architecture not in known:
        raise WeightError(
            f"{what}: timm {timm.__version__} has no architecture {shown(architecture)}"
            f"{nearest(architecture[:100], known)}"
        )
    check_fields(dict(model_args), _MODEL_ARGS, what=f"{what}: model_args")
