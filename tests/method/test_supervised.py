import math

import torch
from torch import nn

from pcd_hub.method.supervised import PooledClassifier, Supervised


def test_the_loss_is_the_mean_cross_entropy_of_both_views():
    network = Supervised(PooledClassifier(nn.Identity(), 3, num_classes=2))
    with torch.no_grad():
        network.base_encoder.fc.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 0, 0]]))
        network.base_encoder.fc.bias.zero_()
    first, second = torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, 2, 2)
    second[0, 0] = 4.0  # logits 4 and 0
    loss = network(first, second, torch.tensor([1, 0]))
    expected = (3 * math.log(2) + math.log(1 + math.exp(4))) / 4
    torch.testing.assert_close(loss, torch.tensor(expected))
