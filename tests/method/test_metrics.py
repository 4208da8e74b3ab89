import torch

from pcd_hub.method.metrics import class_iou, confusion_matrix, mean_iou


def test_iou_by_hand():
    truth = torch.tensor([[0, 0, 1], [1, 1, 255]])
    predicted = torch.tensor([[0, 1, 1], [1, 0, 0]])
    confusion = confusion_matrix(predicted, truth, num_classes=3)
    assert confusion.tolist() == [[1, 1, 0], [1, 2, 0], [0, 0, 0]]
    iou = class_iou(confusion)
    torch.testing.assert_close(iou[:2], torch.tensor([1 / 3, 2 / 4], dtype=torch.float64))
    assert iou[2].isnan()
    torch.testing.assert_close(
        mean_iou(confusion), torch.tensor((1 / 3 + 1 / 2) / 2, dtype=torch.float64)
    )


def test_a_perfect_prediction_scores_one():
    truth = torch.randint(0, 5, (4, 9, 9))
    assert mean_iou(confusion_matrix(truth, truth, num_classes=5)) == 1
