"""The table of commands with their options. Importing it imports no torch."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

Main = Callable[[list[str]], object]
"""Runs a recipe with its part of the command line; returns what ``--json`` prints."""

Run = Callable[[argparse.Namespace], None]
"""Runs a command with its options."""


def _load_distill() -> Main:
    from pcd_hub.train import distill  # noqa: PLC0415

    return distill.main


def _load_probe() -> Main:
    from pcd_hub.train.frozen import probe  # noqa: PLC0415

    return probe.main


def _load_compare() -> Main:
    from pcd_hub.train.frozen import compare  # noqa: PLC0415

    return compare.main


def _load_worth() -> Main:
    from pcd_hub.train.worth import main  # noqa: PLC0415

    return main.main


def _load_weights() -> Mapping[str, Run]:
    from pcd_hub.cli import weights  # noqa: PLC0415

    return weights.RUN


def _load_teachers() -> Mapping[str, Run]:
    from pcd_hub.cli import teachers  # noqa: PLC0415

    return teachers.RUN


def _load_doctor() -> Mapping[str, Run]:
    from pcd_hub.cli import doctor  # noqa: PLC0415

    return {"doctor": doctor.run}


def _load_completion() -> Mapping[str, Run]:
    from pcd_hub.cli import completion  # noqa: PLC0415

    return {"completion": completion.run}


def _load_reports() -> Mapping[str, Run]:
    from pcd_hub.cli import reports  # noqa: PLC0415

    return reports.RUN


def _report_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="page to write; default: RUN/report.html, or comparison.html of several runs",
    )
    _json_option(parser, "{page}")


def _gallery_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="OUT_DIR", help="folder that gets index.html")
    _json_option(parser, "{page, weights}")


def _name_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME|ORG/NAME[@REV]", help="a weight's name or repository")


def _json_option(parser: argparse.ArgumentParser, result: str) -> None:
    parser.add_argument("--json", action="store_true", help=f"print JSON: {result}")


def _list_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--license", metavar="ID", help="only weights with this licence")
    _json_option(parser, "a list of {name, origin, license, parameters, folder}")


def _show_options(parser: argparse.ArgumentParser) -> None:
    _name_option(parser)
    _json_option(parser, "the complete record")


def _fetch_options(parser: argparse.ArgumentParser) -> None:
    _name_option(parser)
    parser.add_argument("--manifest-sha256", metavar="HEX", help="expected sha256 of the manifest")
    _json_option(parser, "{repo, commit, manifest_sha256, folder}")


def _verify_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME|ORG/NAME[@REV]", help="default: all")
    _json_option(parser, "a list of {name, folder, error}; error is null if every byte is right")


def _where_options(parser: argparse.ArgumentParser) -> None:
    _name_option(parser)
    _json_option(parser, "{name, folder}")


def _teachers_options(parser: argparse.ArgumentParser) -> None:
    _json_option(parser, "a list of teachers, with all facts of the table")


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN|EXPORT", help="folder of a run or of its export")
    parser.add_argument("--name", help="ARCH.pcd or ARCH.pcd_WHAT; default: the record's name")
    _json_option(parser, "{name, folder}")


def _average_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", metavar="RUN|NAME", help="the weight after the training: folder or name")
    add(
        "start",
        metavar="START",
        help="the weight that it was trained from: shipped, folder or name",
    )
    add("--share", type=float, default=0.5, help="share of START, between 0 and 1; default: 0.5")
    add("--name", help="ARCH.pcd_WHAT; default: that of RUN with _mean")
    _json_option(parser, "{name, folder, share_of_start}")


def _cache_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dir", type=Path, help="folder of the caches; default: in the store")
    parser.add_argument("--remove", metavar="NAME|all", help="remove one cache, or all of them")
    _json_option(parser, "a list of {path, teacher, images, complete, num_bytes}, and more")


def _publish_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run_or_name", metavar="RUN|NAME", help="folder of a run, or a name in the local store")
    add("repo", metavar="ORG/NAME", help="repository on the Hub")
    visibility = parser.add_mutually_exclusive_group()
    visibility.add_argument("--private", action="store_true", help="keep the repository private")
    visibility.add_argument("--public", action="store_true", help="make a private one public")
    add("--license", metavar="ID", help="licence of the weights, such as apache-2.0")
    add("--teacher-license", metavar="ID", help="licence of the teacher's weights")
    add("--data-license", metavar="ID", help="licence of the training images")
    add("--start-license", metavar="ID", help="licence of the weights the training started from")
    add("--license-link", metavar="URL", help="text of a licence unknown to the Hub")
    add("--dry-run", action="store_true", help="write the folder and list the changes, no more")
    add("--out", type=Path, help="folder that a dry run writes; default: dry-run/NAME")
    _json_option(parser, "{repo, commit, public, changes, folder, record}")


def _doctor_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--offline", action="store_true", help="do not try to reach the Hub")
    facts = "versions, packages, machine, places, hub, default_teacher, variables"
    _json_option(parser, f"{{ready, problems, {facts}}}")


def _completion_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=["bash", "zsh"], help="the shell")


def _export_options(parser: argparse.ArgumentParser) -> None:
    _name_option(parser)
    add = parser.add_argument
    add("out", metavar="OUT", help="folder to create, for the weight and its README.md")
    formats = "torchvision, detectron2, mmdet, transformers, ultralytics, timm, onnx, torchscript"
    add("--to", metavar="FORMAT", required=True, help=f"{formats} or executorch")
    add("--pooled", action="store_true", help="the last three: one embedding, no feature maps")
    add("--opset", type=int, help="onnx: opset; default: 18")
    add("--precision", metavar="TYPE", help="onnx: float32 (default), float16 or int8")
    add("--calibration", metavar="FOLDER", help="onnx, int8: images like those it will see")
    add("--calibration-images", type=int, metavar="N", help="onnx, int8: at most; default: 128")
    add("--max-size", type=int, metavar="PIXELS", help="executorch: of a side; default: 512")
    _json_option(parser, "{name, folder, files}")


def _import_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", metavar="FILE", help="checkpoint: .safetensors, or what torch.save writes")
    add("--arch", required=True, help="timm's name of the backbone, such as resnet18")
    add("--name", metavar="TAG", help="imported_WHAT; default: the weight is ARCH.imported")
    add("--license", metavar="ID", help="licence of the weights; without it: not stated")
    rgb = ("RED", "GREEN", "BLUE")
    add("--mean", nargs=3, type=float, metavar=rgb, help="of the images; default: ImageNet's")
    add("--std", nargs=3, type=float, metavar=rgb, help="for values of 0 to 1 or 255, as --mean")
    add("--bgr", action="store_true", help="the network takes blue, green, red: reverse its input")
    add("--prefix", help="place of the backbone, if the file holds several")
    add("--image-size", type=int, metavar="PX", help="for architectures that depend on it")
    _json_option(parser, "{name, folder, license, mean, std, facts}")


class _Recipe(NamedTuple):
    load: Callable[[], Main]
    """Imports the recipe, which needs the extra ``train``."""
    help: str


RECIPES = {
    "distill": _Recipe(
        _load_distill, "train a backbone on your images: pcd-hub distill DIR --hours 2"
    ),
    "probe": _Recipe(
        _load_probe, "evaluate backbones on labelled images: pcd-hub probe DIR MODEL ..."
    ),
    "worth": _Recipe(
        _load_worth,
        "fine-tune backbones on your labels and compare: pcd-hub worth DIR --models START OTHER",
    ),
    "compare": _Recipe(
        _load_compare, "join the tables of several evaluations: pcd-hub compare RUN ..."
    ),
}
"""Commands whose options belong to a recipe."""


class _Command(NamedTuple):
    load: Callable[[], Mapping[str, Run]]
    """Imports the functions that run this command and its neighbours."""
    help: str
    add_options: Callable[[argparse.ArgumentParser], None]
    examples: tuple[str, ...]
    needs_torch: bool = True


COMMANDS = {
    "list": _Command(
        _load_weights,
        "list local, fetched, published and shipped weights",
        _list_options,
        ("pcd-hub list", "pcd-hub list --license apache-2.0 --json"),
    ),
    "show": _Command(
        _load_weights,
        "print the record of a weight",
        _show_options,
        ("pcd-hub show resnet18.pcd", "pcd-hub show ORG/resnet18.pcd@COMMIT --json"),
    ),
    "fetch": _Command(
        _load_weights,
        "download a weight, verify it and print its pin",
        _fetch_options,
        ("pcd-hub fetch ORG/resnet18.pcd", "pcd-hub fetch resnet18.pcd --json"),
    ),
    "verify": _Command(
        _load_weights,
        "verify every byte of weights on this machine",
        _verify_options,
        ("pcd-hub verify", "pcd-hub verify resnet18.pcd"),
    ),
    "where": _Command(
        _load_weights,
        "print the folder of a weight on this machine",
        _where_options,
        ("pcd-hub where resnet18.pcd",),
    ),
    "teachers": _Command(
        _load_teachers,
        "print recommended teachers with their cost",
        _teachers_options,
        ("pcd-hub teachers", "pcd-hub teachers --json"),
    ),
    "cache": _Command(
        _load_teachers,
        "list or remove the caches of teachers",
        _cache_options,
        ("pcd-hub cache", "pcd-hub cache --remove all"),
    ),
    "add": _Command(
        _load_weights,
        "save a finished weight in the local store",
        _add_options,
        ("pcd-hub add runs/own_images", "pcd-hub add runs/own_images --name resnet18.pcd_photos"),
    ),
    "average": _Command(
        _load_weights,
        "average a weight with the one that its training started from",
        _average_options,
        (
            "pcd-hub average runs/own_images shipped",
            "pcd-hub average resnet18.pcd_photos resnet18.pcd --share 0.3",
        ),
    ),
    "export": _Command(
        _load_weights,
        "write a weight in the format of another framework",
        _export_options,
        (
            "pcd-hub export resnet18.pcd exported --to torchvision",
            "pcd-hub export ORG/resnet18.pcd exported --to onnx --precision float16",
        ),
    ),
    "import": _Command(
        _load_weights,
        "save a checkpoint of another library in the local store",
        _import_options,
        (
            "pcd-hub import exported_last.pt --arch resnet18 --license agpl-3.0",
            "pcd-hub import model_final.pth --arch resnet18 --name imported_coco --bgr",
        ),
    ),
    "publish": _Command(
        _load_weights,
        "publish a finished weight on the Hub",
        _publish_options,
        (
            "pcd-hub publish runs/own_images ORG/resnet18.pcd_photos --dry-run",
            "pcd-hub publish RUN ORG/NAME --license apache-2.0 --data-license cc-by-4.0",
        ),
    ),
    "doctor": _Command(
        _load_doctor,
        "check that a distillation can run here: versions, devices, folders, the Hub",
        _doctor_options,
        ("pcd-hub doctor", "pcd-hub doctor --offline --json"),
    ),
    "completion": _Command(
        _load_completion,
        "print a script that completes commands and options in bash or zsh",
        _completion_options,
        (
            'eval "$(pcd-hub completion bash)"',
            "pcd-hub completion zsh > ~/.zfunc/_pcd-hub",
        ),
        needs_torch=False,
    ),
    "report": _Command(
        _load_reports,
        "write the report of a run again, or of several side by side",
        _report_options,
        ("pcd-hub report runs/own_images", "pcd-hub report runs/one runs/two --output both.html"),
    ),
    "gallery": _Command(
        _load_reports,
        "write a page with all known weights, to compare them",
        _gallery_options,
        ("pcd-hub gallery gallery",),
    ),
}
