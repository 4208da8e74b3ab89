"""Laws that hold for all inputs, checked by hypothesis."""

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pcd_hub.data.batch_plan import BatchPlan, StepSampler
from pcd_hub.method.heads import spatial_mean_error, to_pixel_head
from pcd_hub.method.loss import pixel_info_nce
from pcd_hub.method.queue import KeyQueue

few = settings(max_examples=25, deadline=None)


@st.composite
def heads(draw):
    widths = draw(st.lists(st.integers(1, 12), min_size=2, max_size=5))
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers.append(nn.Linear(before, after, bias=draw(st.booleans())))
        if draw(st.booleans()):
            norm = nn.BatchNorm1d(after, affine=draw(st.booleans()))
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.1, 3)
            layers.append(norm)
        if draw(st.booleans()):
            layers.append(nn.ReLU())
    return nn.Sequential(*layers).double().eval(), widths[0]


@few
@given(heads(), st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**31))
def test_mean_of_the_pixel_head_is_the_head_of_the_mean(head_and_width, height, width, seed):
    head, channels = head_and_width
    maps = torch.randn(
        3,
        channels,
        height,
        width,
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(seed),
    )
    with torch.no_grad():
        size = head(maps.mean((2, 3))).abs().max()
    assert spatial_mean_error(head, to_pixel_head(head), maps) * size <= 1e-10


@few
@given(st.integers(1, 5), st.integers(1, 40), st.floats(0.01, 5), st.floats(0.1, 10))
def test_the_loss_is_invariant_to_lengths_and_to_the_order_of_negatives(
    pixels, k, temperature, scale
):
    student, teacher, negatives = (
        torch.randn(2, 4, pixels, 1),
        torch.randn(2, 4, pixels, 1),
        torch.randn(k, 4),
    )
    one = pixel_info_nce(student, teacher, negatives, temperature=temperature)
    other = pixel_info_nce(
        scale * student, teacher * 3, negatives.flip(0) * scale, temperature=temperature
    )
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert one >= 0


@few
@given(st.integers(1, 20), st.lists(st.integers(1, 30), min_size=1, max_size=6))
def test_a_queue_holds_exactly_the_last_keys(length, batches):
    queue, pushed = KeyQueue(length, 2), []
    for size in batches:
        pushed.append(torch.nn.functional.normalize(torch.randn(size, 2), dim=1))
        queue.push(pushed[-1])
    last = torch.cat(pushed)[-length:]
    distance = (last[:, None] - queue.keys).abs().amax(2)  # (pushed, stored)
    assert distance.amin(1).max() < 1e-5


@few
@given(
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(0, 30),
    st.tuples(st.integers(0, 7), st.integers(0, 99)),
)
def test_processes_and_accumulation_share_the_same_global_batches(
    world, parts, size, extra, start_and_seed
):
    batch, (start, seed) = 12 * size, start_and_seed
    images = batch + extra

    def global_batches(world_size: int, accumulation: int) -> list[list[int]]:
        plans = [
            BatchPlan(
                global_batch_size=batch,
                rank=rank,
                world_size=world_size,
                accumulation_steps=accumulation,
                seed=seed,
                start_step=start,
                total_steps=start + 3,
            )
            for rank in range(world_size)
        ]
        samplers = [iter(StepSampler(images, plan)) for plan in plans]
        steps = []
        for _ in range(3):
            rows = [next(sampler) for _ in range(accumulation) for sampler in samplers]
            steps.append([index for row in rows for _, index in row])
        return steps

    assert global_batches(world, parts) == global_batches(1, 1)
