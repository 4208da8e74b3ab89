import torch

from pcd_hub.method.moments import ChannelMoments


def test_merged_batches_have_the_moments_of_all_values():
    """The mean is large, where float32 sums of squares would cancel."""
    whole = 1000 + torch.randn(12, 5, 3, 4) * torch.tensor([0.1, 1, 2, 3, 4]).view(5, 1, 1)
    moments = ChannelMoments(5)
    for part in whole.split([1, 4, 7]):
        moments.add(ChannelMoments.of(part)[None])
    together = ChannelMoments(5)
    together.add(torch.stack([ChannelMoments.of(part) for part in whole.split([1, 4, 7])]))
    assert torch.equal(moments.merged, together.merged)
    _, mean, squares = moments.merged
    torch.testing.assert_close(mean, whole.mean((0, 2, 3)))
    expected = whole.double().var((0, 2, 3), correction=0).float()
    torch.testing.assert_close(squares / (12 * 3 * 4), expected, rtol=1e-3, atol=0)


def test_standardised_maps_have_unit_variance_per_channel():
    pixels = 3 + 2 * torch.randn(6, 4, 5, 5)
    pixels[:, 1] = 7.0
    moments = ChannelMoments(4)
    moments.add(ChannelMoments.of(pixels)[None])
    standard = moments.standardise(pixels)
    torch.testing.assert_close(standard.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    expected = torch.tensor([1.0, 0.0, 1.0, 1.0])
    torch.testing.assert_close(standard.std((0, 2, 3), correction=0), expected, atol=1e-3, rtol=0)


def test_moments_go_through_a_state_dict():
    one, other = ChannelMoments(2), ChannelMoments(2)
    one.add(ChannelMoments.of(torch.randn(2, 2, 3, 3))[None])
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.merged, other.merged)


def test_without_scaling_maps_are_centred_alone():
    pixels = 3 + 2 * torch.randn(6, 4, 5, 5)
    moments = ChannelMoments(4, scales=False).of_all(pixels)
    centred = moments.standardise(pixels)
    torch.testing.assert_close(centred, pixels - pixels.mean((0, 2, 3))[:, None, None])
    assert not moments.of_all(pixels[:2]).scales
    assert moments.standardise(pixels.bfloat16()).dtype == torch.bfloat16
