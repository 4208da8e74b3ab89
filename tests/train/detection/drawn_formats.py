"""The scene of ``drawn_coco`` in every other format: each writes what its tool writes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.train.detection.drawn_coco import CATEGORIES, HEIGHT, WIDTH, draw_coco, read

NAMES = ("bar", "square")

Scene = dict[str, list[tuple[str, tuple[int, int, int, int]]]]
"""For each file of an image: class and box (left, top, width, height) of its objects."""


def draw_scene(root: Path) -> dict[str, Scene]:
    """Draw the images into ``images/SPLIT`` and return the objects without crowds."""
    draw_coco(root, train=3, val=2)
    scenes: dict[str, Scene] = {}
    for split in ("train", "val"):
        content = read(root, split)
        names = {image["id"]: image["file_name"] for image in content["images"]}
        scenes[split] = {name: [] for name in names.values()}
        for each in content["annotations"]:
            if not each["iscrowd"]:
                label = CATEGORIES[each["category_id"]]
                scenes[split][names[each["image_id"]]].append((label, tuple(each["bbox"])))
        (root / "annotations" / f"instances_{split}.json").unlink()
    (root / "annotations").rmdir()
    return scenes


def write_yolo(root: Path, *, polygons: bool = True) -> Path:
    scenes = draw_scene(root)
    for split, scene in scenes.items():
        for name, objects in scene.items():
            lines = []
            for label, (x, y, w, h) in objects:
                corners = [(x, y), (x + w, y), (x + w, y + h), (x, y + h)]
                values = (
                    [v for px, py in corners for v in (px / WIDTH, py / HEIGHT)]
                    if polygons
                    else [(x + w / 2) / WIDTH, (y + h / 2) / HEIGHT, w / WIDTH, h / HEIGHT]
                )
                lines.append(" ".join([str(NAMES.index(label)), *map(repr, values)]))
            save(root / "labels" / split / Path(name).with_suffix(".txt"), "\n".join(lines))
    save(root / "data.yaml", "train: images/train\nval: images/val\nnc: 2\nnames: [bar, square]\n")
    return root


def write_voc(root: Path) -> Path:
    for split, scene in draw_scene(root).items():
        for name, objects in scene.items():
            body = "".join(
                f"<object><name>{label}</name><difficult>0</difficult><bndbox>"
                f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
                "</bndbox></object>"
                for label, (x, y, w, h) in objects
            )
            content = (
                f"<annotation><filename>{name}</filename><size><width>{WIDTH}</width>"
                f"<height>{HEIGHT}</height><depth>3</depth></size>{body}</annotation>"
            )
            save(root / "annotations" / split / Path(name).with_suffix(".xml"), content)
    return root


def write_labelme(root: Path) -> Path:
    for split, scene in draw_scene(root).items():
        (root / "images" / split).rename(root / split)
        for name, objects in scene.items():
            shapes = [
                shape(label, [(x, y), (x + w, y), (x + w, y + h), (x, y + h)])
                for label, (x, y, w, h) in objects
            ]
            save(root / split / Path(name).with_suffix(".json"), labelme(name, shapes))
    (root / "images").rmdir()
    return root


def shape(label: str, points: Any, kind: str = "polygon", **more: Any) -> dict[str, Any]:
    points = [list(point) for point in points]
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, **more}


def labelme(
    name: str, shapes: list[dict[str, Any]], size: tuple[int, int] = (WIDTH, HEIGHT)
) -> str:
    content = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": name}
    return json.dumps(content | {"imageData": None, "imageHeight": size[1], "imageWidth": size[0]})


def write_cvat(root: Path, kind: str = "polygon") -> Path:
    """One file with the splits as subsets, their images in ``images/Subset``."""
    images, names = "", {"train": "Train", "val": "Validation"}
    for split, scene in draw_scene(root).items():
        (root / "images" / split).rename(root / "images" / names[split])
        for name, objects in scene.items():
            shapes = "".join(cvat_shape(kind, label, box) for label, box in objects)
            images += (
                f'<image id="0" name="{name}" subset="{names[split]}" width="{WIDTH}" '
                f'height="{HEIGHT}">{shapes}</image>'
            )
    labels = "".join(f"<label><name>{name}</name></label>" for name in NAMES)
    meta = f"<version>1.1</version><meta><project><labels>{labels}</labels></project></meta>"
    save(root / "annotations.xml", f"<annotations>{meta}{images}</annotations>")
    return root


def cvat_shape(kind: str, label: str, box: tuple[int, int, int, int]) -> str:
    x, y, w, h = box
    if kind == "box":
        return f'<box label="{label}" xtl="{x}" ytl="{y}" xbr="{x + w}" ybr="{y + h}"/>'
    if kind == "mask":
        return (
            f'<mask label="{label}" rle="0, {w * h}" left="{x}" top="{y}" width="{w}" '
            f'height="{h}"/>'
        )
    points = ";".join(f"{px},{py}" for px, py in ((x, y), (x + w, y), (x + w, y + h), (x, y + h)))
    return f'<polygon label="{label}" points="{points}" z_order="0"/>'


def save(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def save_image(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT), **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), 90, np.uint8)).save(path, **options)
    return path
