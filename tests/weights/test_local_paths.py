"""A record that is shared names no folders of the machine that made it."""

import dataclasses
import json

import pytest

from pcd_hub.weights.local_paths import shortened, without_local_paths
from tests.weights.making import measurement, record


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/ann/secret/photos", "photos"),
        ("/home/ann/photos/", "photos"),
        ("/photos", "photos"),
        ("~/photos", "photos"),
        (r"C:\Users\ann\photos", "photos"),
        ("local-dir:/data/teachers/dino", "local-dir:dino"),
        ("hf-disk:/data/set#image", "hf-disk:set#image"),
        ("mocov3:resnet50:/data/r50.pth", "mocov3:resnet50:r50.pth"),
        ("file:///home/ann/photos", "file://photos"),
        (
            "run --data.source=/a/b --run.output-dir '/c/d e/f'",
            "run --data.source=b --run.output-dir 'f'",
        ),
        ("/home/ann/My Clients/ACME, Inc (2)/photos", "photos"),
        ("local-dir:/data/My Drive/dino", "local-dir:dino"),
        (r"C:\Users\Al Bo\photos", "photos"),
        (r"\\server\Al Bo\photos", "photos"),
        ("run '--data.source=/mnt/Kunde Meier/Bilder' --x", "run '--data.source=Bilder' --x"),
        ("https://host/a/b.tar", "https://host/a/b.tar"),
        ("s3://bucket/photos", "s3://bucket/photos"),
        ("hf:org/name:train#image", "hf:org/name:train#image"),
        ("photos/**/*.jpg", "photos/**/*.jpg"),
        ("images/s, 1/2", "images/s, 1/2"),
    ],
)
def test_only_absolute_paths_are_shortened(text, expected):
    assert shortened(text) == expected


def test_every_part_of_a_record_that_can_name_a_folder():
    table = measurement(
        command="probe /data/set",
        dataset="/home/ann/private/photos",
        seeds=3,
        subject="local-dir:/a/x",
        means={"local-dir:/a/x": 1.0, "random:resnet18": 2.0},
        stds={"local-dir:/a/x": 0.1, "random:resnet18": 0.2},
    )
    made = record(
        recipe="pcd-hub distill /home/ann/photos",
        config={"data": {"source": ["/home/ann/photos", "hf:org/name"], "image_size": 96}},
        teacher={"source": "local-dir:/home/ann/dino", "sha256": "a" * 64},
        data={"source": ["/home/ann/photos"], "images": 3},
        start={"source": "/home/ann/start.pth"},
        metrics={"probe": dataclasses.asdict(table)},
    )
    shared = without_local_paths(made)
    assert "/home" not in json.dumps(shared.to_dict())
    assert "/data" not in json.dumps(shared.to_dict())
    assert shared.config["data"] == {"source": ["photos", "hf:org/name"], "image_size": 96}
    assert shared.measurements()["probe"].dataset == "photos"
    assert shared.measurements()["probe"].means == {"local-dir:x": 1.0, "random:resnet18": 2.0}
    assert shared.data == {"source": ["photos"], "images": 3}
    assert without_local_paths(record()) == record()


def test_a_path_with_spaces_is_found_in_every_text_of_its_record():
    source = "/home/ann/My Clients/ACME/photos"
    table = measurement(command=f"probe {source} --x 1", protocol=f"on {source} (val)")
    made = record(
        recipe=f"pcd-hub distill {source}",
        config={"data": {"source": [source, "/home/ann"]}},
        data={"note": "see /home/ann/secret/notes and /home/ann2/secret"},
        start={"source": "/photos", "note": "runs/photos, https://h.org/photos, /mnt/a/photos, /"},
        metrics={"probe": dataclasses.asdict(table)},
    )
    shared = without_local_paths(made)
    assert "Clients" not in json.dumps(shared.to_dict())
    assert shared.recipe == "pcd-hub distill photos"
    assert shared.data["note"] == "see notes and secret"
    assert shared.start["note"] == "runs/photos, https://h.org/photos, photos, /"
    assert shared.measurements()["probe"].command == "probe photos --x 1"


def test_two_folders_of_the_same_name_stay_apart():
    means = {"local-dir:/a/export": 1.0, "local-dir:/b/export": 2.0}
    table = measurement(seeds=3, subject="local-dir:/a/export", means=means, stds=dict(means))
    made = record(metrics={"probe": dataclasses.asdict(table)})
    assert without_local_paths(made).measurements()["probe"].means == {
        "local-dir:export": 1.0,
        "local-dir:export (2)": 2.0,
    }
