import pytest
import torch

from pcd_hub.errors import DataError
from pcd_hub.evaluate import ClassificationProbe, open_classification
from pcd_hub.evaluate.classification import linear_classifier


def test_separable_classes_are_separated_at_any_scale():
    centres = torch.randn(3, 10)
    labels = torch.arange(60) % 3
    vectors = 1e3 * (centres[labels] + 0.05 * torch.randn(60, 10)) + 7
    guessed = linear_classifier(vectors[:30], labels[:30], vectors[30:], num_classes=3)
    assert torch.equal(guessed, labels[30:])


def test_the_solution_has_no_gradient():
    """Reference implementation: the same problem in float64 by plain gradient descent."""
    train, labels = torch.randn(40, 3, dtype=torch.float64), torch.randint(0, 2, (40,))
    test = torch.randn(200, 3, dtype=torch.float64)
    guessed = linear_classifier(train, labels, test, num_classes=2, penalty=0.1)
    deviation, mean = torch.std_mean(train, 0, correction=0)
    x, y = (train - mean) / (deviation + 1e-5), (test - mean) / (deviation + 1e-5)
    weight = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    for _ in range(3000):
        loss = torch.nn.functional.cross_entropy(x @ weight.T + bias, labels)
        loss = loss + 0.05 * weight.square().sum()
        gradients = torch.autograd.grad(loss, (weight, bias))
        with torch.no_grad():
            weight -= 0.3 * gradients[0]
            bias -= 0.3 * gradients[1]
    slow = (y @ weight.T + bias).argmax(1)
    assert (slow == guessed).float().mean() > 0.99


def test_splits_with_other_classes_are_refused(classes):
    train = open_classification(str(classes), "train")
    save_again = classes / "val" / "black"
    (classes / "val" / "dark").rename(save_again)
    with pytest.raises(DataError, match="differ in class 'black'"):
        ClassificationProbe(train, open_classification(str(classes), "val"))
