"""The garbage collector is paused during imports, and goes on as before."""

import contextlib
import gc

import pytest

from pcd_hub.garbage_collector import paused


@pytest.fixture
def collecting():
    was = gc.isenabled()
    yield
    (gc.enable if was else gc.disable)()


@pytest.mark.usefixtures("collecting")
@pytest.mark.parametrize("before", [True, False])
def test_it_goes_on_as_before_also_after_an_error(before):
    (gc.enable if before else gc.disable)()
    with contextlib.suppress(ImportError), paused():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled() is before
