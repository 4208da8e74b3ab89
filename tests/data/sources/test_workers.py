"""Every kind of source, read by forked and spawned loader processes."""

import pytest
import torch

from pcd_hub.data.batch_plan import BatchPlan
from pcd_hub.data.loader import training_batches
from pcd_hub.data.sources.open import open_sources
from pcd_hub.data.views import byol_views
from tests.data.sources.archives.test_tars import make_tar
from tests.data.sources.archives.test_zips import make_zip, png

FILES = [(f"{n:02}.png", png(10 * n)) for n in range(12)]


def make(folder, url=""):
    """Write the images in every form; return the sources by kind."""
    (folder / "photos").mkdir()
    for name, content in FILES:
        (folder / "photos" / name).write_bytes(content)
    packed, tar = make_zip(folder / "x.zip", FILES), make_tar(folder / "x.tar", FILES)
    first = make_tar(folder / "a.tar.gz", FILES[:6], "w:gz")
    second = make_tar(folder / "b.tar.gz", FILES[6:], "w:gz")
    return {
        "folder": (str(folder / "photos"),),
        "zip": (packed,),
        "tar": (tar,),
        "several": (str(folder / "photos"), packed, tar),
        "stream": (first, second),
        "url": (f"{url}/photos",),
        "zip at a url": (f"{url}/x.zip",),
        "several urls": (f"{url}/photos", f"{url}/x.zip", tar),
        "stream of urls": (f"{url}/a.tar.gz", f"{url}/b.tar.gz"),
    }


@pytest.fixture
def places(request, tmp_path):
    if "url" in request.node.callspec.params["kind"]:
        return make(*request.getfixturevalue("web"))
    return make(tmp_path)


def read(uris, *, num_workers, context=None, start_step=0, states=None):
    source = open_sources(uris)
    plan = BatchPlan(global_batch_size=4, total_steps=6, start_step=start_step, seed=3)
    batches = training_batches(
        source,
        byol_views(
            16,
            seed=3,
        ),
        plan,
        num_workers=num_workers,
        shuffle_buffer=4,
        stream_states=states,
        multiprocessing_context=context if num_workers else None,
    )
    return list(batches)


def assert_same(batches, others):
    assert len(batches) == len(others) > 0
    for one, other in zip(batches, others, strict=True):
        assert not one.broken
        assert torch.equal(one.indices, other.indices)
        assert torch.equal(one.views, other.views)


@pytest.mark.parametrize("kind", ["zip", "several", "url", "several urls"])
def test_forked_workers_read_what_this_process_reads(places, kind):
    here = read(places[kind], num_workers=0)
    assert_same(here, read(places[kind], num_workers=2, context="fork"))


@pytest.mark.parametrize("kind", ["stream", "stream of urls"])
def test_a_stream_of_shards_resumes_in_forked_workers(places, kind):
    whole = read(places[kind], num_workers=2, context="fork")
    assert {int(index) % 2 for batch in whole for index in batch.indices} == {0, 1}
    states = dict(batch.stream_state for batch in whole[:3])
    rest = read(places[kind], num_workers=2, context="fork", start_step=3, states=states)
    assert_same(whole[3:], rest)


@pytest.mark.parametrize("kind", ["several", "stream", "several urls"])
def test_spawned_workers_read_what_forked_workers_read(places, kind):
    forked = read(places[kind], num_workers=2, context="fork")
    assert_same(forked, read(places[kind], num_workers=2, context="spawn"))


@pytest.mark.parametrize("kind", ["zip", "tar", "url", "zip at a url"])
def test_the_images_of_an_archive_are_those_of_the_folder(places, kind):
    assert_same(read(places["folder"], num_workers=0), read(places[kind], num_workers=0))
