import dataclasses

from pcd_hub.report.gallery import content
from pcd_hub.report.gallery.content import GalleryEntry, gallery_entries, score_columns
from pcd_hub.weights import shipped, store
from pcd_hub.weights.cards.results import results_tables
from pcd_hub.weights.record import named_share
from tests.weights.making import exported, filled, measurement, record

NAME = "test_resnet.pcd"


def entry(name=NAME):
    return next(one for one in gallery_entries() if one.name == name)


def test_a_weight_of_the_store_is_described_by_its_record(tmp_path):
    store.add(NAME, exported(tmp_path / "export"))
    found = entry()
    assert (found.origin, found.license, found.architecture) == (
        "local",
        "apache-2.0",
        "test_resnet",
    )
    assert round(found.parameters, 2) == 0.37
    assert 1 < found.megabytes < 2
    assert found.gmacs > 0
    assert found.images == "6,400 of scenes:6400"
    assert list(found.scores.values()) == [50.23]
    assert [caption.partition(":")[0] for caption, _ in found.pictures] == [
        "Feature maps as colours"
    ]
    assert found.code.endswith('pcd_hub.create_model("test_resnet.pcd", features_only=True)')


def test_paths_of_this_machine_are_not_shown_as_the_page_may_be_shared(tmp_path):
    private = {
        "teacher": {**record().teacher, "source": "local-dir:/home/me/dino"},
        "data": {**record().data, "source": "/home/me/photos"},
    }
    store.add(NAME, exported(tmp_path / "export", **private))
    assert (entry().teacher, entry().images) == ("local-dir:dino", "6,400 of photos")


def test_a_shipped_weight_with_a_local_name_says_how_it_is_loaded(tmp_path, monkeypatch):
    ours = exported(tmp_path / "shipped" / NAME)
    monkeypatch.setattr(shipped, "FOLDER", ours.parent)
    assert "#" not in entry().code
    store.add(NAME, filled(2.0, tmp_path / "export"))
    codes = {one.origin: one.code for one in gallery_entries()}
    assert "PCD_HUB_LOCAL=0" in codes["shipped"]
    assert "#" not in codes["local"]


def test_a_damaged_weight_is_listed_with_its_problem(tmp_path):
    folder = store.add(NAME, exported(tmp_path / "export"))
    (folder / "pcd_manifest.json").write_text("{")
    found = entry()
    assert found.license == "unreadable"
    (problem,) = found.problems
    assert "pcd_manifest.json" in problem
    assert found.pictures == ()


def test_a_picture_that_is_damaged_does_not_hide_the_weight(tmp_path):
    folder = store.add(NAME, exported(tmp_path / "export"))
    (folder / "pca.png").write_bytes(b"nothing")
    found = entry()
    assert found.problems[0].startswith("pca.png cannot be shown")
    assert found.architecture == "test_resnet"


def test_only_mean_iou_is_compared_and_the_most_common_data_sets_come_first():
    one = GalleryEntry(name="a", origin="local", license="x", scores={"A": 1.0, "B": 2.0})
    other = dataclasses.replace(one, scores={"B": 2.0})
    assert score_columns([one, other]) == ["B", "A"]
    many = dataclasses.replace(one, scores={str(n): 1.0 for n in range(20)})
    assert len(score_columns([many])) == 6


def test_scores_of_two_protocol_versions_are_two_columns():
    tables = {str(n): dataclasses.asdict(measurement(protocol_version=n)) for n in (1, 2)}
    (one, other) = content._scores(record(metrics=tables))
    assert other == one.replace("probe)", "probe, protocol version 2)")


def test_scores_with_a_share_of_the_labels_are_a_column_of_their_own():
    names = [named_share("streets/val", share) for share in (1.0, 0.1)]
    tables = {each: dataclasses.asdict(measurement(dataset=each)) for each in names}
    (one, other) = content._scores(record(metrics=tables))
    assert other == one.replace(" (", ", 10 % of the labels (", 1)
    (whole, share) = results_tables(record(metrics=tables).measurements())
    assert ", 10 % of the labels: n = " in share
    assert "of the labels" not in whole


def test_other_metrics_are_no_columns(tmp_path):
    table = dataclasses.asdict(measurement(metric="pixel accuracy"))
    facts = record(metrics={"probe": table})
    assert content._scores(facts) == {}
