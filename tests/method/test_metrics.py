import math

import pytest
import torch
import torch.nn.functional as F

from pcd_hub.method.metrics import (
    class_iou,
    confusion_matrix,
    effective_rank,
    knn_vote,
    linear_cka,
    mean_cosine,
    mean_iou,
    pixel_accuracy,
    pixel_relations,
    pixel_retrieval,
    retrieval_top1,
)


def test_iou_of_a_hand_computed_example():
    truth = torch.tensor([[0, 0, 1], [1, 1, 255]])
    predicted = torch.tensor([[0, 1, 1], [1, 1, 0]])
    confusion = confusion_matrix(predicted, truth, num_classes=3)
    assert confusion.tolist() == [[1, 1, 0], [0, 3, 0], [0, 0, 0]]
    iou = class_iou(confusion)
    torch.testing.assert_close(iou[:2], torch.tensor([1 / 2, 3 / 4], dtype=torch.float64))
    assert iou[2].isnan()
    torch.testing.assert_close(
        mean_iou(confusion), torch.tensor((1 / 2 + 3 / 4) / 2, dtype=torch.float64)
    )


def test_a_perfect_prediction_scores_one():
    truth = torch.randint(0, 5, (4, 9, 9))
    assert mean_iou(confusion_matrix(truth, truth, num_classes=5)) == 1


def test_pixel_accuracy_equals_the_fraction_counted_pixel_by_pixel():
    truth, predicted = torch.randint(0, 5, (3, 9, 7)), torch.randint(0, 4, (3, 9, 7))
    truth[truth == 4] = 255
    pairs = list(zip(truth.flatten().tolist(), predicted.flatten().tolist(), strict=True))
    labelled = [(true, guess) for true, guess in pairs if true != 255]
    expected = sum(true == guess for true, guess in labelled) / len(labelled)
    accuracy = pixel_accuracy(confusion_matrix(predicted, truth, num_classes=4))
    assert 0 < expected < 1
    assert len(labelled) < len(pairs)
    assert float(accuracy) == pytest.approx(expected, rel=1e-6)
    assert pixel_accuracy(torch.zeros(4, 4, dtype=torch.long)).isnan()


# Nearest neighbours.


def test_knn_vote_equals_the_reference_per_vector_in_float64():
    train, labels, test = torch.randn(30, 5), torch.randint(0, 4, (30,)), torch.randn(7, 5)
    voted = knn_vote(train, labels, test, num_classes=4, k=6, temperature=0.1)
    for vector, guess in zip(test.double(), voted, strict=True):
        cosines = F.cosine_similarity(vector[None], train.double())
        nearest = cosines.argsort(descending=True)[:6]
        votes = [0.0] * 4
        for row in nearest.tolist():
            votes[labels[row]] += math.exp(cosines[row] / 0.1)
        assert votes.index(max(votes)) == guess


def test_temperature_weighs_near_neighbours_against_many():
    train = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, 0.8]])
    labels, test = torch.tensor([0, 1, 1]), torch.tensor([[2.0, 0.1]])
    assert knn_vote(train, labels, test, num_classes=2, k=3, temperature=0.07).tolist() == [0]
    assert knn_vote(train, labels, test, num_classes=2, k=3, temperature=10.0).tolist() == [1]
    assert knn_vote(train, labels, test, num_classes=2, k=99).tolist() == [0], "k is capped at n"
    sharp = torch.tensor([[0.9, 0.3], [1.0, 0.0], [1.0, 0.0]])
    labels, test = torch.tensor([0, 1, 1]), torch.tensor([[1.0, 0.0]])
    assert knn_vote(sharp, labels, test, num_classes=2, k=3, temperature=0.01).tolist() == [1]


# Effective rank and CKA.


def test_effective_rank_counts_directions():
    basis = torch.eye(8)
    even = torch.cat([basis, -basis])
    assert effective_rank(even) == pytest.approx(8)
    assert effective_rank(even + 5.0) == pytest.approx(8), "the mean is subtracted"
    line = torch.linspace(-1, 1, 16)[:, None] * torch.ones(8)
    assert effective_rank(line) == pytest.approx(1)
    assert effective_rank(torch.ones(16, 8)) == pytest.approx(1), "constant"


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)])
@pytest.mark.parametrize("noise", [1.0, 1e-3])
def test_effective_rank_equals_the_reference_from_singular_values(shape, noise):
    rows, columns = shape
    vectors = torch.randn(rows, 3) @ torch.randn(3, columns) + noise * torch.randn(shape)
    values = torch.linalg.svdvals(vectors.double() - vectors.double().mean(0))
    shares = values / values.sum()
    expected = (-shares * shares.clamp_min(1e-300).log()).sum().exp()
    assert effective_rank(vectors) == pytest.approx(float(expected), rel=1e-5)


def test_cka_is_one_after_rotation_and_scaling_and_small_for_unrelated_vectors():
    vectors = torch.randn(400, 6)
    rotation = torch.linalg.qr(torch.randn(6, 6)).Q
    assert linear_cka(vectors, 3 * vectors @ rotation + 1) == pytest.approx(1)
    assert linear_cka(vectors, torch.randn(400, 9)) < 0.1
    assert linear_cka(vectors, torch.ones(400, 3)) == 0, "constant vectors"
    wide, narrow = vectors @ torch.randn(6, 20), vectors
    assert linear_cka(wide, narrow) == pytest.approx(linear_cka(narrow, wide))


# Retrieval.


def test_a_rotated_copy_of_the_teacher_has_retrieval_one():
    teacher = torch.randn(5, 8, 6)
    rotation = torch.linalg.qr(torch.randn(8, 8)).Q
    student = 2 * torch.einsum("ncp,cd->ndp", teacher, rotation)
    assert pixel_retrieval(student, teacher, k=1) == 1
    assert pixel_retrieval(torch.randn(5, 8, 6), teacher, k=1) < 0.3
    assert pixel_retrieval(torch.randn(5, 8, 6), teacher, k=24) == 1, "k covers all other pixels"


def test_pixels_of_the_same_image_are_not_neighbours():
    """The pixels of image 0 are closest to each other, but only those of image 1 count."""
    one = torch.tensor([[[1.0, 1.0], [0.0, 0.01]], [[0.9, 0.0], [0.3, 1.0]]])
    assert pixel_retrieval(one, one, k=1) == 1
    swapped = one.clone()
    swapped[1] = one[1].flip(-1)
    assert pixel_retrieval(swapped, one, k=1) == 0.5, "only the pixels of image 1 still agree"


def test_mean_cosine_equals_the_mean_over_all_pairs():
    vectors = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    pairs = torch.nn.functional.cosine_similarity(vectors[:, None], vectors[None], dim=2)
    assert mean_cosine(vectors) == pytest.approx(float(pairs.mean()), rel=1e-5)
    assert mean_cosine(vectors[:1].expand(5, 4) * torch.rand(5, 1)) == pytest.approx(1)


def test_pixel_relations_are_those_to_the_pixels_of_other_images():
    torch.manual_seed(0)
    one = torch.randn(4, 8, 3)
    relations = pixel_relations(one)
    unit = torch.nn.functional.normalize(one.transpose(1, 2).flatten(0, 1), dim=1).double()
    kernel = unit @ unit.T
    centring = torch.eye(12).double() - 1 / 12
    expected = centring @ kernel @ centring
    for row in range(12):
        same = range(row // 3 * 3, row // 3 * 3 + 3)
        others = [column for column in range(12) if column not in same]
        assert int(relations.nearest[row]) == max(others, key=lambda c: float(kernel[row, c]))
        assert relations.profiles[row, list(same)].tolist() == [0, 0, 0]
        profile = expected[row, others] / expected[row, others].norm()
        torch.testing.assert_close(relations.profiles[row, others].double(), profile)


def test_profiles_do_not_depend_on_rotation_and_scale_and_a_constant_map_has_none():
    torch.manual_seed(0)
    one = torch.randn(5, 6, 4)
    rotation = torch.linalg.qr(torch.randn(6, 6)).Q
    turned = 7 * torch.einsum("dc,ncp->ndp", rotation, one)
    profiles = pixel_relations(one).profiles
    assert (profiles * pixel_relations(turned).profiles).sum(1).tolist() == pytest.approx(
        [1.0] * 20
    )
    other = pixel_relations(torch.randn(5, 6, 4)).profiles
    assert abs(float((profiles * other).sum(1).mean())) < 0.2
    constant = pixel_relations(torch.ones(5, 6, 4)).profiles
    assert float((profiles * constant).sum(1).abs().max()) < 1e-3


def test_retrieval_is_the_mean_of_both_directions():
    first = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    second = torch.tensor([[5.0, 0.0], [1.0, 0.9], [0.0, 2.0]])
    # From the first views 0 finds 0, 1 finds 2 and 2 finds 1; from the second 0 finds 0 alone, too.
    assert retrieval_top1(first, second) == pytest.approx(2 / 6)
    assert retrieval_top1(first, first) == 1
    many = torch.randn(1500, 8)  # more than one chunk
    assert retrieval_top1(many, many) == 1
