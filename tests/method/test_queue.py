import pytest
import torch
import torch.nn.functional as F

from pcd_hub.method.queue import KeyQueue


def numbered(count: int, start: int = 0) -> torch.Tensor:
    """Make distinct unit keys in the plane."""
    angle = torch.arange(start, start + count) * 0.1
    return torch.stack([angle.cos(), angle.sin()], 1)


def test_a_new_queue_holds_random_unit_vectors_of_its_seed():
    keys = KeyQueue(100, 8, seed=3).keys
    torch.testing.assert_close(keys.norm(dim=1), torch.ones(100))
    assert torch.equal(keys, KeyQueue(100, 8, seed=3).keys)
    assert not torch.equal(keys, KeyQueue(100, 8, seed=4).keys)


@pytest.mark.parametrize("batch", [1, 3, 4, 7, 10, 11, 25])
def test_queue_wraps_when_a_batch_does_not_divide_it(batch):
    queue, pushed = KeyQueue(10, 2), []
    for start in range(0, 5 * batch, batch):
        queue.push(numbered(batch, start))
        pushed += numbered(batch, start).tolist()
    expected = {}
    for place, key in enumerate(pushed):
        expected[place % 10] = key
    for place, key in expected.items():
        torch.testing.assert_close(queue.keys[place], torch.tensor(key))
    assert queue.cursor.item() == len(pushed) % 10


def test_keys_are_normalised_when_pushed():
    queue = KeyQueue(4, 3)
    queue.push(torch.tensor([[3.0, 0.0, 4.0]]))
    torch.testing.assert_close(queue.keys[0], torch.tensor([0.6, 0.0, 0.8]))


def test_queue_goes_through_a_state_dict():
    queue, again = KeyQueue(6, 2, seed=1), KeyQueue(6, 2, seed=2)
    queue.push(numbered(4))
    again.load_state_dict(queue.state_dict())
    queue.push(numbered(3, 4))
    again.push(numbered(3, 4))
    assert torch.equal(queue.keys, again.keys)


@pytest.mark.parametrize("length", [3, 6, 8])
def test_loading_a_queue_of_another_length_keeps_the_newest_keys(length):
    queue, again = KeyQueue(6, 2, seed=1), KeyQueue(length, 2, seed=2)
    queue.push(numbered(9))
    again.load_state_dict(queue.state_dict())
    shared = min(length, 6)
    torch.testing.assert_close(again.newest(shared), numbered(9).flip(0)[:shared])
    again.push(numbered(length - shared, 9))
    oldest = again.newest(length)[length - shared :]
    torch.testing.assert_close(oldest, numbered(9).flip(0)[:shared])


def test_half_precision_keys_are_stored_in_float32():
    queue = KeyQueue(4, 8)
    keys = torch.randn(2, 8).to(torch.bfloat16)
    queue.push(keys)
    torch.testing.assert_close(queue.keys[:2], F.normalize(keys.float(), dim=1))


def test_an_empty_queue_is_rejected():
    with pytest.raises(ValueError, match="length=0, dim=8: expected a queue of at least 1 key"):
        KeyQueue(0, 8)


def test_newest_returns_the_last_keys_first_across_the_end():
    queue = KeyQueue(5, 2)
    queue.push(numbered(7, 0))
    torch.testing.assert_close(queue.newest(3), numbered(7, 0).flip(0)[:3])
    assert len(queue.newest(100)) == 5
