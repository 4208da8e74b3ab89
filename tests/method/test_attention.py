import pytest
import torch

from pcd_hub.method.attention import SelfAttention2d


def trained(dim: int = 16, num_heads: int = 4) -> SelfAttention2d:
    block = SelfAttention2d(dim, num_heads=num_heads).eval()
    torch.nn.init.normal_(block.proj.weight, std=0.1)
    return block


def test_a_new_block_is_the_identity():
    x = torch.randn(2, 16, 3, 5)
    assert torch.equal(SelfAttention2d(16, num_heads=4).eval()(x), x)


def test_block_equals_torch_multi_head_attention():
    block = trained()
    reference = torch.nn.MultiheadAttention(16, 4, bias=True, batch_first=True).eval()
    with torch.no_grad():
        reference.in_proj_weight.copy_(block.qkv.weight.flatten(1))
        reference.in_proj_bias.zero_()
        reference.out_proj.weight.copy_(block.proj.weight.flatten(1))
        reference.out_proj.bias.copy_(block.proj.bias)
    x = torch.randn(2, 16, 3, 5)
    tokens = block.norm(x).flatten(2).transpose(1, 2)
    expected = x + reference(tokens, tokens, tokens)[0].transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-6)


def test_every_position_attends_to_every_other():
    x = torch.randn(1, 16, 4, 4, requires_grad=True)
    trained()(x)[0, :, 0, 0].sum().backward()
    assert (x.grad.abs().sum(1) > 0).all()


def test_number_of_heads_must_divide_the_channels():
    with pytest.raises(ValueError, match="num_heads=4 does not divide dim=10"):
        SelfAttention2d(10, num_heads=4)
