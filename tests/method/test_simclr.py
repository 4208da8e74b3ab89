import torch
import torch.distributed as dist
from torch import nn

from pcd_hub.method.encoder import ProjectedEncoder, gather_rows, projector
from pcd_hub.method.simclr import ProjectedVectors, SimCLR, nt_xent


def test_nt_xent_equals_the_definition():
    first, second = torch.randn(4, 8), torch.randn(4, 8)
    views = [v / v.norm() for pair in zip(first, second, strict=True) for v in pair]
    terms = []
    for i, view in enumerate(views):
        others = [torch.exp(view @ other / 0.3) for k, other in enumerate(views) if k != i]
        terms.append(-torch.log(torch.exp(view @ views[i ^ 1] / 0.3) / sum(others)))
    loss = nt_xent(first, second, temperature=0.3)
    torch.testing.assert_close(loss, torch.stack(terms).mean(), rtol=1e-5, atol=0)


def test_both_views_receive_gradients():
    first, second = torch.randn(4, 8, requires_grad=True), torch.randn(4, 8, requires_grad=True)
    nt_xent(first, second, temperature=0.1).backward()
    assert first.grad is not None
    assert second.grad is not None
    assert first.grad.abs().sum() > 0
    assert second.grad.abs().sum() > 0


def test_gathering_in_one_process_returns_the_rows_with_their_gradient():
    """No deprecated call is made (warnings are errors); tests/distributed uses two processes."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        rows = torch.randn(3, 2, requires_grad=True)
        all_rows, offset = gather_rows(rows)
        (all_rows * torch.arange(6.0).view(3, 2)).sum().backward()
    finally:
        dist.destroy_process_group()
    assert offset == 0
    assert torch.equal(all_rows, rows)
    assert torch.equal(rows.grad, torch.arange(6.0).view(3, 2))


def test_both_views_share_batch_statistics():
    encoder = ProjectedEncoder(nn.Conv2d(3, 4, 1), 4, hidden_width=6, dim=5)
    model = SimCLR(encoder, temperature=0.5)
    first, second = torch.rand(4, 3, 2, 2), 5 + torch.rand(4, 3, 2, 2)
    loss = model(first, second)
    vectors = encoder(torch.cat((first, second)))
    torch.testing.assert_close(loss, nt_xent(vectors[:4], vectors[4:], temperature=0.5))


def test_a_head_on_vectors_has_the_loss_of_its_outputs_which_share_batch_statistics():
    head = projector(3, hidden_width=6, dim=5, num_layers=3)
    names = [type(layer).__name__ for layer in head]
    assert names == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear", "BatchNorm1d"]
    first, second = torch.rand(4, 3), 5 + torch.rand(4, 3)
    loss = ProjectedVectors(head, temperature=0.5)(first, second)
    vectors = head(torch.cat((first, second)))
    torch.testing.assert_close(loss, nt_xent(vectors[:4], vectors[4:], temperature=0.5))
