"""Strict checks of the names and the JSON of a weight that came from elsewhere.

Bytes go in; plain values come out, or a ``WeightError`` of one short line: the file, what was
found, the bound. Nothing here opens a file or a connection, and a hostile file costs no more time
than a bad one. The lists are allow-lists of what ``pcd_hub.weights.export`` writes.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import timm

from pcd_hub.errors import WeightError, nearest
from pcd_hub.files.strict_json import (
    OBJECT,
    SHA256,
    TEXT,
    Field,
    check_fields,
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
from pcd_hub.weights.layout import CONFIG_FILE, MANIFEST_FILE, MANIFEST_SCHEMA, WEIGHTS_FILE

MAX_JSON_BYTES = 1_000_000
"""Of ``config.json`` and of ``pcd_manifest.json``."""
MAX_FILES = 50
MAX_FILE_BYTES = 4 * 1024**3
_MAX_OTHER_BYTES = 64 * 1024**2
_MOST_BYTES = {WEIGHTS_FILE: MAX_FILE_BYTES, CONFIG_FILE: MAX_JSON_BYTES}

_FILE_NAME = re.compile(
    r"model\.safetensors|config\.json|pcd_manifest\.json|README\.md|LICENSE(\.md|\.txt)?"
    r"|(?!(con|prn|aux|nul|com\d|lpt\d)\.)[a-z0-9_-]{1,60}\.png"  # not a device of Windows
)
_PROSE = Field(
    lambda v: isinstance(v, str) and len(v) <= 500 and v.isprintable(),
    "a printable string of at most 500 characters",
    required=False,
)
_ARCHITECTURE = matching(r"[a-z0-9_]{1,100}", "a timm architecture, as resnet18")
_MODULE = matching(r"[A-Za-z0-9_.]{1,100}", "a module's name")
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
_MODEL_ARGS = {"img_size": optional(whole(8, 1024))}
_PRETRAINED_CFG = {
    "architecture": _ARCHITECTURE,
    "tag": matching(r"pcd(_[a-z0-9_]{1,60})?", "pcd or pcd_WHAT"),
    "custom_load": one_of([False]),
    "num_classes": one_of([0]),
    "input_size": Field(lambda v: _SIZE.fits(v) and v[0] == 3, "[3, height, width], up to 4096"),
    "fixed_input_size": optional(one_of([False, True])),
    "interpolation": one_of(["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]),
    "crop_pct": number(0.01, 2.0),
    "crop_mode": optional(one_of(["center", "squash", "border"])),
    "mean": several(number(0.0, 1.0), 3, 3),
    "std": several(number(0.001, 1.0), 3, 3),
    "pool_size": or_null(several(whole(1, 4096), 2, 2)),
    "first_conv": _MODULES,
    "classifier": _MODULES,
    **dict.fromkeys(("license", "description", "paper_name", "paper_ids"), _PROSE),
}


def check_file_names(names: Iterable[str], *, what: str) -> None:
    """Check that every name is one of a published weight's files, and stands once.

    These are ``model.safetensors``, ``config.json``, ``pcd_manifest.json``, ``README.md``,
    ``LICENSE`` (``.md``, ``.txt``) and pictures ``[a-z0-9_-]{1,60}.png``, all at the top.

    Raises:
        WeightError: Naming the first other name, the first twin (also one that differs only in
            case), or that there are too many.
    """
    seen: set[str] = set()
    for name in names:
        if not (isinstance(name, str) and _FILE_NAME.fullmatch(name)):
            raise WeightError(
                f"{what}: {shown(name)} is no file of a weight; it may hold {WEIGHTS_FILE}, "
                f"{CONFIG_FILE}, {MANIFEST_FILE}, README.md, LICENSE and [a-z0-9_-].png"
            )
        if name.casefold() in seen:
            raise WeightError(f"{what}: {shown(name)} stands twice")
        seen.add(name.casefold())
        if len(seen) > MAX_FILES:
            raise WeightError(f"{what}: more than {MAX_FILES} files")


def check_manifest(raw: bytes, *, what: str) -> dict[str, Any]:
    """Check ``pcd_manifest.json`` and return it.

    Raises:
        WeightError: If it is not of the known schema, or lists a file that is not one of a
            weight's, or itself, or not the weights and the config.
    """
    manifest = parse_json(raw, what=what, max_bytes=MAX_JSON_BYTES)
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if type(schema) is int and schema != MANIFEST_SCHEMA:
        raise WeightError(
            f"{what}: schema is {schema}, known is {MANIFEST_SCHEMA}; "
            "written by a newer pcd_hub? upgrade"
        )
    check_fields(manifest, _MANIFEST, what=what)
    for index, file in enumerate(manifest["files"]):
        check_fields(file, _LISTED, what=f"{what}: file {index}")
    paths = [file["path"] for file in manifest["files"]]
    check_file_names([*paths, MANIFEST_FILE], what=what)
    for needed in (WEIGHTS_FILE, CONFIG_FILE):
        if needed not in paths:
            raise WeightError(f"{what}: {needed} is not listed; publish the weight again")
    for file in manifest["files"]:
        most = _MOST_BYTES.get(file["path"], _MAX_OTHER_BYTES)
        if file["size"] > most:
            raise WeightError(f"{what}: {file['path']} has {file['size']} bytes, at most {most}")
    return manifest


def check_config(raw: bytes, *, what: str) -> dict[str, Any]:
    """Check timm's ``config.json`` and return it.

    Raises:
        WeightError: If it holds a key or a value that ``export_weight`` would not write, above
            all another source of the weights, or names an architecture that timm has not.
    """
    config = parse_json(raw, what=what, max_bytes=MAX_JSON_BYTES)
    check_fields(config, _CONFIG, what=what)
    cfg, architecture = config["pretrained_cfg"], config["architecture"]
    check_fields(cfg, _PRETRAINED_CFG, what=f"{what}: pretrained_cfg")
    check_buildable(architecture, config.get("model_args", {}), what=what)
    if cfg["architecture"] != architecture:
        raise WeightError(
            f"{what}: architecture is {architecture}, in pretrained_cfg {cfg['architecture']}"
        )
    return config


def check_buildable(architecture: str, model_args: Mapping[str, Any], *, what: str) -> None:
    """Check that timm has the architecture, and that its arguments are bounded.

    Raises:
        WeightError: Naming the architecture or the argument.
    """
    known = timm.list_models()  # without old aliases, of which timm warns
    if architecture not in known:
        raise WeightError(
            f"{what}: timm {timm.__version__} has no architecture {shown(architecture)}"
            f"{nearest(architecture[:100], known)}"
        )
    check_fields(dict(model_args), _MODEL_ARGS, what=f"{what}: model_args")
