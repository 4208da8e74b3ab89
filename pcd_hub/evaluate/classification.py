"""A linear classifier on the pooled vectors of a frozen backbone."""

import itertools

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from pcd_hub.evaluate.segmentation import Progress, silent


def linear_classifier(
    train: Float[Tensor, "n c"],
    labels: Int64[Tensor, " n"],
    test: Float[Tensor, "m c"],
    *,
    num_classes: int,
    penalty: float = 1e-3,
    steps: int = 200,
    progress: Progress = silent,
) -> Int64[Tensor, " m"]:
    """Class of each test vector by multinomial logistic regression on standardised vectors.

    Args:
        train: One vector an image.
        labels: Its class.
        test: Vectors to classify.
        num_classes: How many classes there are.
        penalty: Of the squared weights, halved, beside the mean cross-entropy.
        steps: Of L-BFGS at most; the problem is convex and has one solution.
        progress: Shows how often the loss was evaluated.
    """
    deviation, mean = torch.std_mean(train, 0, correction=0)
    train, test = ((vectors - mean) / (deviation + 1e-5) for vectors in (train, test))
    layer = nn.Linear(train.shape[1], num_classes).to(train)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=steps, line_search_fn="strong_wolfe")
    most = optimizer.param_groups[0]["max_eval"]
    evaluations = progress(itertools.count(), "fitting, evaluations at most", total=most)

    def loss() -> Tensor:
        next(evaluations)
        optimizer.zero_grad()
        value = F.cross_entropy(layer(train), labels) + penalty / 2 * layer.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        return layer(test).argmax(1)
