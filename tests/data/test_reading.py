import multiprocessing

import pytest
import torch

from pcd_hub.data.decoding import BrokenImageError
from pcd_hub.data.reading import read_batches


def squared(key: int) -> torch.Tensor:
    if key == 13:
        raise BrokenImageError("13.png", "truncated")
    return torch.tensor([key**2, multiprocessing.parent_process() is not None])


def test_batches_are_in_order_with_and_without_workers():
    keys = [[3, 1], [2], [7, 5, 4]]
    before = torch.get_rng_state()
    in_process, by_workers = (
        list(read_batches(squared, keys, num_workers=count, batch_bytes=64, collate=torch.stack))
        for count in (0, 2)
    )
    assert [batch[:, 0].tolist() for batch in in_process] == [[9, 1], [4], [49, 25, 16]]
    assert [batch[:, 0].tolist() for batch in by_workers] == [[9, 1], [4], [49, 25, 16]]
    assert {int(flag) for batch in in_process for flag in batch[:, 1]} == {0}
    assert {int(flag) for batch in by_workers for flag in batch[:, 1]} == {1}
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_error_of_a_broken_image_is_raised_at_its_batch(num_workers):
    batches = read_batches(squared, [[1, 2], [3, 13], [4]], num_workers=num_workers, batch_bytes=64)
    assert len(next(batches)) == 2
    with pytest.raises(BrokenImageError, match="^13.png: truncated$"):
        next(batches)
