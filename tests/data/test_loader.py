import dataclasses
import io
import itertools
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from pcd_hub.data.batch_plan import BatchPlan
from pcd_hub.data.decoding import BrokenImageError
from pcd_hub.data.loader import training_batches
from pcd_hub.data.shared_memory import Workers
from pcd_hub.data.sources.open import open_source
from pcd_hub.data.views import EarlyViews, byol_views
from pcd_hub.errors import DataError

VIEWS = byol_views(16, seed=0)

# torch warns if there are more workers than cores.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


class Shades:
    """A source whose image ``i`` has the gray value ``i``; some are broken."""

    def __init__(self, count: int, broken: tuple[int, ...] = ()):
        self.count, self.broken = count, broken

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.broken:
            raise BrokenImageError(f"image {index}", "for the test")
        return Image.fromarray(np.full((24, 24, 3), index, np.uint8))

    def read(self, index, to_image):
        return to_image(self[index])

    def name(self, index):
        return str(index)

    def fingerprint(self):
        return "shades"


def batches(source, *, num_workers=0, context=None, states=None, shuffle_buffer=4, **plan):
    plan = BatchPlan(**({"global_batch_size": 4, "total_steps": 5, "seed": 1} | plan))
    return list(
        training_batches(
            source,
            VIEWS,
            plan,
            num_workers=num_workers,
            multiprocessing_context=context,
            stream_states=states,
            shuffle_buffer=shuffle_buffer,
        )
    )


def test_the_size_of_oblong_batches_is_their_bytes(monkeypatch):
    seen = []

    def fit(num_workers, **options):
        seen.append(options["batch_bytes"])
        return Workers(num_workers, options["prefetch"])

    monkeypatch.setattr("pcd_hub.data.loader.fit_workers", fit)
    views, plan = byol_views((16, 24), seed=0), BatchPlan(global_batch_size=4, total_steps=1)
    (batch,) = training_batches(Shades(8), views, plan, num_workers=0)
    assert batch.views.shape == (4, 2, 3, 16, 24)
    assert seen == [batch.views.nbytes]


@pytest.mark.parametrize("kind", ["indexed", "stream"])
def test_a_batch_tells_how_its_views_were_cut(kind, request):
    """All images are square: 24 of 24 pixels a side, or of 8 pixels in a stream."""
    side = 24
    source = Shades(24, broken=(3,))
    if kind == "stream":
        side, source = 8, open_source(request.getfixturevalue("stream_uri"))
    found = batches(source, total_steps=14, num_workers=1)
    for batch in found:
        for row, (index, epoch) in enumerate(zip(batch.indices, batch.epochs, strict=True)):
            drawn = VIEWS.draw((side, side), epoch=int(epoch), index=int(index)).views
            boxes = [[edge / side for edge in view.box] for view in drawn]
            assert torch.equal(batch.crops[row], torch.tensor(boxes))
            assert batch.flips[row].tolist() == [[view.flip, view.vertical_flip] for view in drawn]
    assert {int(epoch) for batch in found for epoch in batch.epochs} == {0, 1, 2}
    flips = torch.cat([batch.flips for batch in found])
    assert 0.3 < flips[..., 0].float().mean() < 0.7
    assert not flips[..., 1].any()


@pytest.mark.parametrize(("num_workers", "context"), [(1, "fork"), (3, "fork"), (1, "spawn")])
def test_views_do_not_depend_on_the_number_of_workers(num_workers, context):
    without_workers = batches(Shades(10))
    with_workers = batches(Shades(10), num_workers=num_workers, context=context)
    assert len(without_workers) == len(with_workers) == 5
    for one, other in zip(without_workers, with_workers, strict=True):
        assert torch.equal(one.views, other.views)
        assert torch.equal(one.indices, other.indices)


def test_every_epoch_has_each_image_once_in_a_new_order():
    seen = torch.cat([batch.indices for batch in batches(Shades(12), total_steps=6)]).tolist()
    first, second = seen[:12], seen[12:]
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second


def test_a_resumed_run_continues_with_the_same_batches():
    whole = batches(Shades(10), total_steps=8)
    rest = batches(Shades(10), total_steps=8, start_step=3)
    assert len(rest) == 5
    for one, other in zip(whole[3:], rest, strict=True):
        assert torch.equal(one.views, other.views)


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_processes_load_the_parts_of_one_global_batch(accumulation_steps):
    plan = {"global_batch_size": 8, "accumulation_steps": accumulation_steps}
    whole = batches(Shades(20), **plan)
    parts = [batches(Shades(20), **plan, rank=rank, world_size=2) for rank in range(2)]
    for one, *halves in zip(whole, *parts, strict=True):
        assert torch.equal(one.views, torch.cat([half.views for half in halves]))


def test_a_broken_image_is_named_and_replaced_by_the_next():
    found = batches(Shades(8, broken=(2, 3)), total_steps=2)
    names = {name for batch in found for name, _ in batch.broken}
    assert names == {"image 2", "image 3"}
    indices = torch.cat([batch.indices for batch in found]).tolist()
    assert sorted(indices) == [0, 1, 4, 4, 4, 5, 6, 7]


def test_only_broken_images_is_an_error():
    with pytest.raises(
        DataError, match="none of 8 images that were tried can be decoded, the first is image"
    ):
        batches(Shades(8, broken=tuple(range(8))))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"global_batch_size": 11}, "10 images are fewer than one global batch of 11"),
        (
            {"world_size": 3},
            "global batch size 4: expected a multiple of 3 .3 processes x 1 accumulation steps",
        ),
    ],
)
def test_an_impossible_plan_is_rejected(plan, message):
    with pytest.raises(DataError, match=message):
        batches(Shades(10), **plan)


def test_batches_are_picklable():
    (batch,) = batches(Shades(4), total_steps=1)
    assert torch.equal(pickle.loads(pickle.dumps(batch)).views, batch.views)


# Streams.


@pytest.fixture
def stream_uri(tmp_path):
    import datasets

    for part in range(4):
        images = [
            Image.new("RGB", (8, 8), (10 * number, 0, 0))
            for number in range(6 * part, 6 * part + 6)
        ]
        table = datasets.Dataset.from_dict({"image": images}).cast_column("image", datasets.Image())
        table.to_parquet(tmp_path / f"train-{part}.parquet")
    return f"hf-stream:{tmp_path}"


@pytest.mark.parametrize("num_workers", [0, 1, 3])
@pytest.mark.parametrize("stop", [1, 4, 9])
def test_a_stream_resumes_exactly_in_the_middle_of_an_epoch(stream_uri, num_workers, stop):
    whole = batches(open_source(stream_uri), total_steps=14, num_workers=num_workers)
    states = dict(batch.stream_state for batch in whole[:stop])
    rest = batches(
        open_source(stream_uri),
        total_steps=14,
        start_step=stop,
        num_workers=num_workers,
        states=states,
    )
    assert len(whole) == 14
    assert len(rest) == 14 - stop
    for one, other in zip(whole[stop:], rest, strict=True):
        assert torch.equal(one.indices, other.indices)
        assert torch.equal(one.views, other.views)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stream_is_shuffled_within_blocks_differently_in_every_epoch(stream_uri, num_workers):
    """There are 24 images; the first of two workers reads files 0 and 2, 12 images per epoch."""
    epochs = []
    readers = max(1, num_workers)
    found = batches(open_source(stream_uri), total_steps=12, num_workers=num_workers)
    first = torch.cat([batch.indices for batch in found[::readers]]).tolist()
    length = 24 // readers
    numbers = [index // readers for index in first]
    for epoch in range(len(numbers) // length):
        seen = [n - epoch * length for n in numbers[epoch * length :][:length]]
        assert sorted(seen) == list(range(length)), "each image once"
        assert seen != sorted(seen), "not in the stored order"
        assert all(place // 4 == n // 4 for place, n in enumerate(seen)), "within its block"
        epochs.append(tuple(seen))
    assert len(epochs) == len(set(epochs)) == 2


def test_the_indices_of_a_shuffled_stream_match_its_images(stream_uri, monkeypatch):
    """The colour of each image is its place in the stored order."""

    def unchanged(_, image, __):
        return torch.tensor(np.array(image)).permute(2, 0, 1).expand(2, 3, -1, -1)

    monkeypatch.setattr(type(VIEWS), "render", unchanged)
    (batch,) = batches(
        open_source(stream_uri), global_batch_size=24, total_steps=1, shuffle_buffer=10
    )
    red = batch.views[:, 0, 0, 0, 0].tolist()
    assert red == [10 * number for number in batch.indices.tolist()]
    assert red != sorted(red)


def test_a_buffer_of_one_keeps_the_stored_order(stream_uri):
    found = batches(open_source(stream_uri), total_steps=6, shuffle_buffer=1)
    assert torch.cat([batch.indices for batch in found]).tolist() == list(range(24))
    with pytest.raises(DataError, match="--data.shuffle-buffer 0: expected an integer >= 1"):
        batches(open_source(stream_uri), shuffle_buffer=0)


def test_all_workers_of_a_stream_have_different_indices(stream_uri):
    found = [
        batches(
            open_source(stream_uri, rank=rank, world_size=2), rank=rank, world_size=2, num_workers=2
        )
        for rank in range(2)
    ]
    indices = [i for part in found for batch in part for i in batch.indices.tolist()]
    assert len(set(indices)) == len(indices) == 2 * 5 * 2


def test_resuming_a_stream_with_another_number_of_workers_is_rejected(stream_uri):
    states = dict(batch.stream_state for batch in batches(open_source(stream_uri), num_workers=2))
    with pytest.raises(DataError, match="1 workers per process: expected 2, as before"):
        batches(open_source(stream_uri), start_step=5, total_steps=6, num_workers=1, states=states)


def test_closing_the_iterator_ends_the_workers():
    plan = BatchPlan(global_batch_size=4, total_steps=100)
    iterator = training_batches(Shades(10), VIEWS, plan, num_workers=2)
    assert len(list(itertools.islice(iterator, 3))) == 3
    iterator.close()


def test_broken_images_of_a_stream_have_unique_names(stream_of_broken):
    found = batches(open_source(stream_of_broken(3)), total_steps=4)
    names = [name for batch in found for name, _ in batch.broken]
    assert len(names) > 3, "they are counted again in the next epoch"
    assert len(set(names)) == len(names)


def test_a_stream_of_only_broken_images_is_an_error(stream_of_broken):
    with pytest.raises(
        DataError, match="none of 32 images that were tried can be decoded, the first is .*row 0"
    ):
        batches(open_source(stream_of_broken(8)))


@pytest.fixture
def stream_of_broken(tmp_path):
    """Make a stream of eight images, of which the first ``count`` are broken."""

    import datasets

    def make(count: int) -> str:
        images = [encoded(index) if index >= count else b"no image" for index in range(8)]
        feature = datasets.Features({"image": datasets.Image()})
        rows = [{"bytes": image, "path": None} for image in images]
        datasets.Dataset.from_dict({"image": rows}, features=feature).to_parquet(
            str(tmp_path / "0.parquet")
        )
        return f"hf-stream:{tmp_path}"

    return make


def encoded(value: int) -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (40, 40), (value, 0, 0)).save(written, "PNG")
    return written.getvalue()


# Sizes of the views.


def sized_batches(source, *, num_workers=0, states=None, **plan):
    views = dataclasses.replace(VIEWS, early=EarlyViews(image_size=(8, 12), steps=3))
    plan = BatchPlan(**({"global_batch_size": 4, "total_steps": 6, "seed": 1} | plan))
    return list(
        training_batches(
            source,
            views,
            plan,
            num_workers=num_workers,
            stream_states=states,
            shuffle_buffer=4,
        )
    )


@pytest.mark.parametrize("num_workers", [0, 3])
@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_the_size_of_the_views_follows_the_step(num_workers, accumulation_steps):
    options = {"num_workers": num_workers, "accumulation_steps": accumulation_steps}
    whole = sized_batches(Shades(10), **options)
    sizes = [tuple(batch.views.shape[3:]) for batch in whole]
    assert sizes == [(8, 12)] * 3 * accumulation_steps + [(16, 16)] * 3 * accumulation_steps
    usual = batches(Shades(10), total_steps=6, accumulation_steps=accumulation_steps)
    for one, other in zip(whole[-3:], usual[-3:], strict=True):
        assert torch.equal(one.views, other.views), "the final views do not depend on the early"
    for stop in (2, 3, 4):
        rest = sized_batches(Shades(10), start_step=stop, **options)
        assert len(rest) == (6 - stop) * accumulation_steps
        for one, other in zip(whole[stop * accumulation_steps :], rest, strict=True):
            assert torch.equal(one.views, other.views)


@pytest.mark.parametrize("num_workers", [0, 1, 3])
@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_stream_goes_on_where_the_size_of_the_views_changes(stream_uri, num_workers, stop):
    options = {"num_workers": num_workers, "total_steps": 9}
    whole = sized_batches(open_source(stream_uri), **options)
    assert [batch.views.shape[4] for batch in whole] == [12] * 3 + [16] * 6
    usual = batches(open_source(stream_uri), **options)
    for one, other in zip(whole, usual, strict=True):
        assert torch.equal(one.indices, other.indices)
        assert one.stream_state == other.stream_state
    states = dict(batch.stream_state for batch in whole[:stop])
    rest = sized_batches(open_source(stream_uri), start_step=stop, states=states, **options)
    for one, other in zip(whole[stop:], rest, strict=True):
        assert torch.equal(one.indices, other.indices)
        assert torch.equal(one.views, other.views)
