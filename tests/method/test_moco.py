import torch
from torch import nn

from pcd_hub.method.encoder import ProjectedEncoder
from pcd_hub.method.moco import MoCoV3, info_nce, momentum_copy, momentum_update


def test_info_nce_equals_the_definition():
    query, key = torch.randn(5, 8, dtype=torch.float64), torch.randn(5, 8, dtype=torch.float64)
    loss = info_nce(query, key, temperature=0.3)
    q, k = query / query.norm(dim=1, keepdim=True), key / key.norm(dim=1, keepdim=True)
    terms = [
        -torch.log(torch.exp(q[i] @ k[i] / 0.3) / sum(torch.exp(q[i] @ other / 0.3) for other in k))
        for i in range(5)
    ]
    torch.testing.assert_close(loss.double(), 0.6 * torch.stack(terms).mean(), rtol=1e-5, atol=0)


def test_each_view_is_compared_with_the_key_of_the_other_view():
    encoder = ProjectedEncoder(nn.Conv2d(3, 4, 1), 4, hidden_width=6, dim=5)
    model = MoCoV3(encoder, hidden_width=6, dim=5, temperature=0.3)
    first, second = torch.rand(2, 4, 3, 2, 2)
    key_first, key_second = torch.randn(2, 4, 5)
    loss = model(first, second, key_first, key_second)
    one, other = (model.predictor(encoder(view)) for view in (first, second))
    expected = info_nce(one, key_second, temperature=0.3)
    expected += info_nce(other, key_first, temperature=0.3)
    torch.testing.assert_close(loss, expected)


def test_momentum_update_moves_by_one_minus_momentum():
    fast = nn.Linear(3, 2)
    slow = momentum_copy(fast)
    start = slow.weight.clone()
    with torch.no_grad():
        fast.weight.add_(1.0)
    momentum_update(slow, fast, momentum=0.9)
    torch.testing.assert_close(slow.weight, start + 0.1)
    assert not slow.weight.requires_grad
