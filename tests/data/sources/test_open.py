import functools
import io
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pcd_hub.data.decoding import BrokenImageError, as_rgb
from pcd_hub.data.sources.files import hash_sizes
from pcd_hub.data.sources.hf_datasets import _parse_name, split_column
from pcd_hub.data.sources.open import ImageSource, ImageStream, open_source
from pcd_hub.errors import DataError


def save(path: Path, colour=(200, 30, 30), size=(20, 16)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def test_images_at_any_depth_of_a_folder_are_found(tmp_path):
    for name in ("a.jpg", "x/b.PNG", "x/y/z/c.webp", "ü.jpeg"):
        save(tmp_path / name)
    save(tmp_path / ".hidden" / "d.jpg")
    (tmp_path / "._a.jpg").write_bytes(b"resource fork")
    (tmp_path / "notes.txt").write_text("no image")
    source = open_source(str(tmp_path))
    assert isinstance(source, ImageSource)
    assert len(source) == 4
    assert source[0].mode == "RGB"
    assert source[0].size == (20, 16)


def test_a_list_keeps_its_order_and_its_paths_are_relative_to_it(tmp_path):
    save(tmp_path / "images" / "b.png", (0, 0, 255))
    save(tmp_path / "images" / "a.png", (0, 255, 0))
    (tmp_path / "list.txt").write_text("images/b.png\nimages/a.png\n\n")
    source = open_source(str(tmp_path / "list.txt"))
    assert [source[i].getpixel((0, 0)) for i in range(len(source))] == [(0, 0, 255), (0, 255, 0)]


def test_the_fingerprint_changes_with_the_files_not_their_place(tmp_path):
    save(tmp_path / "a.png")
    one = open_source(str(tmp_path)).fingerprint()
    assert open_source(str(tmp_path)).fingerprint() == one
    save(tmp_path / "b.png")
    two = open_source(str(tmp_path)).fingerprint()
    (tmp_path / "b.png").write_bytes(b"another image in its place")
    three = open_source(str(tmp_path)).fingerprint()
    (tmp_path / "b.png").rename(tmp_path / "c.png")
    four = open_source(str(tmp_path)).fingerprint()
    assert len({one, two, three, four}) == 4
    shutil.copytree(tmp_path, tmp_path / "elsewhere" / "copy")
    assert open_source(str(tmp_path / "elsewhere" / "copy")).fingerprint() == four


def test_a_fingerprint_reads_the_size_of_at_most_4096_files():
    indices = []

    def path_of(index):
        indices.append(index)
        return "/no/such"

    assert hash_sizes(1_300_000, path_of) == hash_sizes(4096, str)
    assert len(indices) == 4096
    assert (indices[0], indices[-1]) == (0, 1_299_999)


def test_a_scenes_uri_sets_count_and_seed():
    source = open_source("scenes:12:7")
    assert len(source) == 12
    assert "seed 7" in source.fingerprint()
    assert np.array_equal(np.asarray(source[3]), np.asarray(open_source("scenes:99:7")[3]))


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("/no/such/folder", "no folder /no/such/folder"),
        ("/no/such/list.txt", "no list /no/such/list.txt"),
        ("scenes:many", r"scenes:many: expected scenes:\[COUNT\[:SEED\]\]"),
        ("/proc/1/root/x", "no folder /proc/1/root/x"),
        ("~nobody-of-this-name/x", "no folder ~nobody-of-this-name/x"),
        ("scenes:0", "scenes:0: COUNT is 1 to 1000000000"),
        ("scenes:5:-1", "scenes:5:-1: .* SEED at least 0"),
        ("hf-disk:/no/such", "no folder /no/such"),
        ("hf:/no/such/dataset", "cannot open the dataset /no/such/dataset"),
    ],
)
def test_a_missing_source_is_named(uri, message):
    with pytest.raises(DataError, match=message):
        open_source(uri)


def test_a_folder_or_list_without_images_is_rejected(tmp_path):
    (tmp_path / "readme.md").write_text("x")
    with pytest.raises(DataError, match="has no image at any depth"):
        open_source(str(tmp_path))
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match="lists no image"):
        open_source(str(tmp_path / "empty.txt"))


@pytest.mark.parametrize(
    "content", [b"", b"<html>404</html>", b"\xff\xd8\xff\xe0 not a jpeg", None]
)
def test_a_broken_image_is_named_with_its_reason(tmp_path, content):
    path = save(tmp_path / "bad.jpg", size=(200, 200))
    path.write_bytes(path.read_bytes()[:500] if content is None else content)
    with pytest.raises(BrokenImageError, match=r"bad.jpg: \w+Error") as caught:
        open_source(str(tmp_path))[0]
    assert pickle.loads(pickle.dumps(caught.value)).name == str(path)


# Hugging Face datasets, in local folders.


@pytest.fixture
def dataset(tmp_path):
    import datasets

    images = [Image.new("RGB", (8, 8), (10 * number, 0, 0)) for number in range(12)]
    table = datasets.Dataset.from_dict({"image": images, "label": list(range(12))})
    table = table.cast_column("image", datasets.Image())
    for part in range(4):
        rows = table.select(range(3 * part, 3 * part + 3))
        (tmp_path / "hub").mkdir(exist_ok=True)
        rows.to_parquet(tmp_path / "hub" / f"train-{part}.parquet")
    table.save_to_disk(tmp_path / "disk")
    return tmp_path


def shade(image) -> int:
    return image.getpixel((0, 0))[0] // 10


def test_a_saved_dataset_is_opened_and_pickled(dataset):
    source = open_source(f"hf-disk:{dataset / 'disk'}")
    assert [shade(source[i]) for i in range(len(source))] == list(range(12))
    again = pickle.loads(pickle.dumps(source))
    assert shade(again[5]) == 5


def test_a_dataset_in_a_local_folder_is_opened(dataset):
    source = open_source(f"hf:{dataset / 'hub'}:train")
    assert sorted(shade(source[i]) for i in range(len(source))) == list(range(12))
    with pytest.raises(DataError, match="split nowhere"):
        open_source(f"hf:{dataset / 'hub'}:nowhere")


def test_a_stream_is_split_by_process_and_resumes_from_its_state(dataset):
    parts = []
    for rank in range(2):
        stream = open_source(f"hf-stream:{dataset / 'hub'}", rank=rank, world_size=2)
        assert isinstance(stream, ImageStream)
        assert not isinstance(stream, ImageSource)
        rows = [(shade(image(as_rgb)), state) for image, state in stream.read(state=None)]
        again = open_source(f"hf-stream:{dataset / 'hub'}", rank=rank, world_size=2)
        rest = [shade(image(as_rgb)) for image, _ in again.read(state=rows[1][1])]
        assert rest == [number for number, _ in rows[2:]]
        parts += [number for number, _ in rows]
    assert sorted(parts) == list(range(12))


def test_a_broken_row_does_not_end_a_stream(tmp_path):
    import datasets

    good = tmp_path / "good.png"
    save(good)
    rows = [
        {"bytes": data, "path": None} for data in (good.read_bytes(), b"rubbish", good.read_bytes())
    ]
    table = datasets.Dataset.from_dict({"image": rows}).cast_column("image", datasets.Image())
    (tmp_path / "hub").mkdir()
    table.to_parquet(tmp_path / "hub" / "train.parquet")
    stream = open_source(f"hf-stream:{tmp_path / 'hub'}")
    first, broken, last = [image for image, _ in stream.read(state=None)]
    with pytest.raises(BrokenImageError, match="row 1 of this part"):
        broken(as_rgb)
    assert shade(first(as_rgb)) == shade(last(as_rgb))


def broken_rows(count):
    """Make broken rows that share a path, as pushing ``a/x.png``, ``b/x.png`` to the Hub does."""
    import datasets

    rows = [{"bytes": b"rubbish", "path": "image.png"}] * count
    return datasets.Dataset.from_dict({"image": rows}).cast_column("image", datasets.Image())


def test_broken_rows_are_named_by_row_not_by_path(tmp_path):
    broken_rows(3).save_to_disk(tmp_path / "disk")
    broken_rows(3).to_parquet(tmp_path / "hub" / "train.parquet")
    source = open_source(f"hf-disk:{tmp_path / 'disk'}")
    stream = open_source(f"hf-stream:{tmp_path / 'hub'}")
    found = [functools.partial(source.read, row) for row in range(3)]
    for readers in (found, [image for image, _ in stream.read(state=None)]):
        names = set()
        for read in readers:
            with pytest.raises(BrokenImageError, match=r"\('image.png'\): Unidentified") as caught:
                read(as_rgb)
            names.add(caught.value.name)
        assert len(names) == 3
    with pytest.raises(BrokenImageError, match=rf"^hf-disk:{tmp_path}/disk\[2\] \('image.png'\)"):
        source[2]


def test_a_row_without_an_image_is_named(tmp_path):
    import datasets

    rows = datasets.Dataset.from_dict({"image": [{"bytes": b"", "path": ""}, None]})
    rows.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "disk")
    source = open_source(f"hf-disk:{tmp_path / 'disk'}")
    for row in range(2):
        with pytest.raises(BrokenImageError, match=r"\[\d\]: ValueError: the row has no image"):
            source[row]


def truncate(folder, share):
    table = next(folder.glob("*.arrow"))
    table.write_bytes(table.read_bytes()[:share])


INCOMPLETE = "is not a complete dataset saved by datasets.save_to_disk"
DAMAGES = {
    "empty": (lambda folder: shutil.rmtree(folder) or folder.mkdir(), INCOMPLETE),
    "no table": (lambda folder: next(folder.glob("*.arrow")).unlink(), INCOMPLETE),
    "a piece": (lambda folder: truncate(folder, 100), INCOMPLETE),
    "between batches": (lambda folder: truncate(folder, -8), r"\.arrow is truncated; save the"),
    "its state": (lambda folder: (folder / "state.json").write_text("{"), INCOMPLETE),
    "its columns": (lambda folder: (folder / "dataset_info.json").write_text("[]"), INCOMPLETE),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_dataset_is_a_one_line_error(tmp_path, name):
    broken_rows(3).save_to_disk(tmp_path / "disk")
    damage, message = DAMAGES[name]
    damage(tmp_path / "disk")
    with pytest.raises(DataError, match=rf"^[^\n]*disk[^\n]*{message}[^\n]*$"):
        open_source(f"hf-disk:{tmp_path / 'disk'}")


def test_an_error_while_streaming_is_a_one_line_error(dataset):
    stream = open_source(f"hf-stream:{dataset / 'hub'}")
    for file in (dataset / "hub").glob("*.parquet"):
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"^hf-stream:[^\n]*hub cannot be read completely: [^\n]*$"):
        list(stream.read(state=None))


@pytest.fixture
def choices(tmp_path):
    """Two configurations with the split ``test``, in a folder with a colon in its path."""
    folder = tmp_path / "10:30"
    for config in ("left", "right"):
        (folder / config).mkdir(parents=True)
        broken_rows(2).to_parquet(folder / config / "test.parquet")
    listed = [f"- config_name: {c}\n  data_files:\n  - split: test\n    path: {c}/*.parquet\n"
              for c in ("left", "right")]  # fmt: skip
    (folder / "README.md").write_text(f"---\nconfigs:\n{''.join(listed)}---\n")
    return folder


@pytest.mark.parametrize("scheme", ["hf", "hf-stream"])
def test_configurations_and_splits_are_listed_if_one_must_be_chosen(choices, scheme):
    with pytest.raises(
        DataError, match=r"configurations left, right; choose one, for example hf:.*30/left"
    ):
        open_source(f"{scheme}:{choices}:test")
    with pytest.raises(DataError, match=r"configuration middle.* configurations left, right; "):
        open_source(f"{scheme}:{choices}/middle:test")
    shutil.rmtree(choices / "right")
    with pytest.raises(
        DataError, match=r"split train: it has the splits test; choose one, for example hf:"
    ):
        open_source(f"{scheme}:{choices}/left")
    assert open_source(f"{scheme}:{choices}/left:test")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("org/name", ("org/name", None, "train")),
        ("org/name:test", ("org/name", None, "test")),
        ("org/name/config", ("org/name", "config", "train")),
        ("org/name/config:train[:10%]+test", ("org/name", "config", "train[:10%]+test")),
        ("cifar10:test", ("cifar10", None, "test")),
        ("/no/such/folder", ("/no/such/folder", None, "train")),
    ],
)
def test_a_name_on_the_hub_is_split_at_its_first_colon(text, parts):
    assert _parse_name(text) == parts


def test_the_splits_of_a_saved_dataset_are_listed(tmp_path):
    import datasets

    datasets.DatasetDict(test=broken_rows(2), val=broken_rows(2)).save_to_disk(tmp_path / "d")
    with pytest.raises(
        DataError, match=r"splits test, val; choose one, for example hf-disk:.*d/test"
    ):
        open_source(f"hf-disk:{tmp_path / 'd'}")
    with pytest.raises(DataError, match=r"no folder .*d/train .*d has the splits test, val\)"):
        open_source(f"hf-disk:{tmp_path / 'd'}/train")
    assert len(open_source(f"hf-disk:{tmp_path / 'd'}/val")) == 2


def test_several_image_columns_are_listed(tmp_path):
    import datasets

    mask = broken_rows(1).rename_column("image", "mask")
    datasets.concatenate_datasets([broken_rows(1), mask], axis=1).save_to_disk(tmp_path / "d")
    with pytest.raises(DataError, match=r"2 image columns \(image, mask\).*: expected exactly 1"):
        open_source(f"hf-disk:{tmp_path / 'd'}")


def test_a_dataset_without_an_image_column_is_rejected(tmp_path):
    import datasets

    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "d")
    with pytest.raises(
        DataError,
        match=r"has 0 image columns among its columns text: expected exactly 1;.*select_columns",
    ):
        open_source(f"hf-disk:{tmp_path / 'd'}")


def two_columns():
    """Make two rows with two image columns: shade 0 and 1 in the first, 5 and 6 in the second."""
    import datasets

    def column(first):
        return [Image.new("RGB", (8, 8), (10 * shade, 0, 0)) for shade in (first, first + 1)]

    table = datasets.Dataset.from_dict({"left": column(0), "right": column(5), "label": [1, 2]})
    for name in ("left", "right"):
        table = table.cast_column(name, datasets.Image())
    return table


def test_one_of_several_image_columns_is_named(tmp_path):
    two_columns().save_to_disk(tmp_path / "a#b")
    two_columns().to_parquet(tmp_path / "hub" / "train.parquet")
    for uri in (f"hf-disk:{tmp_path}/a#b", f"hf:{tmp_path}/hub", f"hf:{tmp_path}/hub:train"):
        source = open_source(f"{uri}#right")
        assert [shade(source[0]), shade(source[1])] == [5, 6]
        with pytest.raises(DataError, match=rf"name one, for example {uri}#left$"):
            open_source(uri)
        with pytest.raises(DataError, match=r"label: expected a column 'middle'; name one, for ex"):
            open_source(f"{uri}#middle")
    stream = open_source(f"hf-stream:{tmp_path}/hub:train#left")
    assert [shade(image(as_rgb)) for image, _ in stream.read(state=None)] == [0, 1]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("org/name", ("org/name", None)),
        ("org/name/config:test[:5%]#photo", ("org/name/config:test[:5%]", "photo")),
        ("/data/c#/photos", ("/data/c#/photos", None)),
    ],
)
def test_a_column_follows_a_number_sign(text, parts):
    assert split_column(text) == parts


def test_images_in_a_zip_are_read(tmp_path):
    """The datasets library names them by a chained URL and leaves their bytes in the archive."""
    (tmp_path / "hub").mkdir()
    with zipfile.ZipFile(tmp_path / "hub" / "data.zip", "w") as archive:
        for number in range(3):
            content = io.BytesIO()
            Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(content, "PNG")
            archive.writestr(f"train/{number}.png", content.getvalue())
    source = open_source(f"hf:{tmp_path / 'hub'}")
    assert isinstance(source, ImageSource)
    assert [shade(source[index]) for index in range(3)] == [0, 4, 8]
    stream = open_source(f"hf-stream:{tmp_path / 'hub'}")
    assert isinstance(stream, ImageStream)
    assert [shade(load(as_rgb)) for load, _ in stream.read(state=None)] == [0, 4, 8]
