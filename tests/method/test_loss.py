import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pcd_hub.method.loss import (
    _bank_parts,
    _has_flash_kernel,
    bank_log_sum_exp,
    cosine_smooth_l1,
    pixel_info_nce,
    similarity_kl,
)
from tests.peak_memory import needs_linux, peak_growth

on_each_device = pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
)


def reference_pixel_info_nce(
    student: Tensor, teacher: Tensor, negatives: Tensor, temperature: float
) -> Tensor:
    """Evaluate the definition one pixel at a time in float64."""
    losses = []
    for image_s, image_t in zip(student.double(), teacher.double(), strict=True):
        for s, t in zip(image_s.flatten(1).T, image_t.flatten(1).T, strict=True):
            unit = s / s.norm()
            positive = torch.exp(unit @ t / t.norm() / temperature)
            negative = sum(torch.exp(unit @ n / n.norm() / temperature) for n in negatives.double())
            losses.append(-torch.log(positive / (positive + negative)))
    return torch.stack(losses).mean()


def case(*, dtype: torch.dtype = torch.float32, k: int = 37) -> tuple[Tensor, Tensor, Tensor]:
    student = torch.randn(3, 8, 2, 5, dtype=dtype, requires_grad=True)
    return student, torch.randn(3, 8, 2, 5, dtype=dtype), torch.randn(k, 8, dtype=dtype)


@pytest.mark.parametrize("temperature", [0.03, 0.2, 1.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_value_and_gradient_equal_the_definition(dtype, tolerance, temperature):
    student, teacher, negatives = case(dtype=dtype)
    loss = pixel_info_nce(student, teacher, negatives, temperature=temperature)
    (gradient,) = torch.autograd.grad(loss, student)
    expected = reference_pixel_info_nce(student, teacher, negatives, temperature)
    (expected_gradient,) = torch.autograd.grad(expected, student)
    assert abs(loss.item() - expected.item()) <= tolerance * expected.item()
    assert (gradient - expected_gradient).abs().max() <= tolerance * expected_gradient.abs().max()


def test_tiles_do_not_change_the_result(monkeypatch):
    student, teacher, negatives = case(dtype=torch.float64)  # has no flash attention
    whole = pixel_info_nce(student, teacher, negatives, temperature=0.2)
    (whole_gradient,) = torch.autograd.grad(whole, student)
    monkeypatch.setattr("pcd_hub.method.loss._CPU_TILE", (7, 5))
    tiled = pixel_info_nce(student, teacher, negatives, temperature=0.2)
    (tiled_gradient,) = torch.autograd.grad(tiled, student)
    torch.testing.assert_close(tiled, whole, rtol=1e-14, atol=0)
    torch.testing.assert_close(tiled_gradient, whole_gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("k", [1, 255])
def test_equal_logits_give_log_of_k_plus_one(k):
    same = torch.ones(2, 4, 3, 3)
    loss = pixel_info_nce(same, same, torch.ones(k, 4), temperature=0.2)
    torch.testing.assert_close(loss, torch.tensor(float(k + 1)).log(), rtol=1e-6, atol=0)


def test_a_small_temperature_gives_finite_values():
    student, teacher, negatives = case()
    loss = pixel_info_nce(student, teacher, negatives, temperature=1e-3)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_only_the_student_receives_a_gradient():
    student, teacher, negatives = case()
    teacher.requires_grad_()
    negatives.requires_grad_()
    pixel_info_nce(student, teacher, negatives, temperature=0.2).backward()
    assert student.grad is not None
    assert teacher.grad is None
    assert negatives.grad is None


@on_each_device
def test_bfloat16_autocast_is_as_exact_as_dense_bfloat16_logits(device):
    """The tolerance is the error of the dense version in the same dtype."""
    student, teacher, negatives = (
        value.detach().to(device) for value in case(k=101 if device == "cpu" else 128)
    )
    student.requires_grad_()
    exact = reference_pixel_info_nce(student, teacher, negatives, 0.2)
    (exact_gradient,) = torch.autograd.grad(exact, student)
    with torch.autocast(device, torch.bfloat16):
        ours = pixel_info_nce(student, teacher, negatives, temperature=0.2)
        s = F.normalize(student.flatten(2).transpose(1, 2).flatten(0, 1), dim=1)
        t = F.normalize(teacher.flatten(2).transpose(1, 2).flatten(0, 1), dim=1)
        logits = torch.cat([(s * t).sum(1, keepdim=True), s @ F.normalize(negatives, dim=1).T], 1)
        labels = torch.zeros(len(logits), dtype=torch.int64, device=device)
        dense = F.cross_entropy(logits.float() / 0.2, labels)
    (gradient,) = torch.autograd.grad(ours, student)
    (dense_gradient,) = torch.autograd.grad(dense, student)
    assert ours.dtype == torch.float32
    assert abs(ours - exact) <= 2 * abs(dense - exact) + 1e-3
    error = (gradient - exact_gradient).abs().max()
    assert error <= 2 * (dense_gradient - exact_gradient).abs().max()


@pytest.mark.parametrize(("n", "k"), [(30, 64), (300, 63), (7, 128)])
def test_flash_attention_and_tiles_give_the_same_sums_and_gradients(monkeypatch, n, k):
    query = F.normalize(torch.randn(n, 16), dim=1).requires_grad_()
    bank = torch.randn(k, 16)
    results = []
    for keys_per_part, flash in ((16, True), (k, True), (k, False)):
        monkeypatch.setattr("pcd_hub.method.loss._FLASH_KEYS", keys_per_part)
        if not flash:
            monkeypatch.setattr("pcd_hub.method.loss._has_flash_kernel", lambda *_: False)
        log_sum = bank_log_sum_exp(query, bank, temperature=0.2)
        results.append((log_sum, *torch.autograd.grad(log_sum.square().sum(), query)))
    for by_flash in results[:2]:
        torch.testing.assert_close(by_flash, results[2], rtol=1e-5, atol=1e-4)


def test_the_number_of_parts_divides_the_bank():
    cpu = torch.device("cpu")
    assert [_bank_parts(128, k, cpu) for k in (4096, 16_384, 65_536, 65_534)] == [1, 1, 4, 2]


def test_float64_has_no_flash_attention():
    assert _has_flash_kernel(torch.ones(4, 8), torch.float32)
    assert not _has_flash_kernel(torch.ones(4, 8, dtype=torch.float64), torch.float64)


@on_each_device
@pytest.mark.parametrize("channels", [128, 256, 512])
def test_log_sum_exp_in_bfloat16_is_as_exact_as_dense_logits(device, channels, record_property):
    """On a GPU, 512 channels exceed the flash kernel's limit and use tiles."""
    n, k = (40, 256) if device == "cpu" else (6272, 65_536)
    query = F.normalize(torch.randn(n, channels, device=device), dim=1).requires_grad_()
    bank = F.normalize(torch.randn(k, channels, device=device), dim=1)
    by_flash = device == "cpu" or channels <= 256
    assert _has_flash_kernel(query, torch.bfloat16) == by_flash
    exact = (query.double() @ bank.double().T / 0.2).logsumexp(1)
    (exact_gradient,) = torch.autograd.grad(exact.sum(), query)
    with torch.autocast(device, torch.bfloat16):
        dense = (query @ bank.T).float().div(0.2).logsumexp(1)
        ours = bank_log_sum_exp(query, bank, temperature=0.2)
    (dense_gradient,) = torch.autograd.grad(dense.sum(), query)
    (gradient,) = torch.autograd.grad(ours.sum(), query)
    assert (ours - exact).abs().max() <= 2 * (dense - exact).abs().max()
    error, dense_error = (
        (found - exact_gradient).norm() / exact_gradient.norm()
        for found in (gradient, dense_gradient)
    )
    record_property("error of the gradient, and dense", f"{error:.1e} {dense_error:.1e}")
    assert error <= 2 * dense_error


def test_log_sum_exp_passes_gradcheck():
    query = F.normalize(torch.randn(4, 6, dtype=torch.float64), dim=1).requires_grad_()
    bank = torch.randn(9, 6, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda q: bank_log_sum_exp(q, bank, temperature=0.3), query)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0: expected a value > 0"),
        ({"negatives": torch.ones(5, 3)}, "negatives have 3 channels: expected 8"),
        ({"teacher": torch.ones(3, 8, 2, 4)}, "expected the same shape"),
    ],
)
@pytest.mark.usefixtures("jaxtyping_off")
def test_invalid_arguments_are_named(change, message):
    student, teacher, negatives = case()
    arguments = {"teacher": teacher, "negatives": negatives, "temperature": 0.2} | change
    with pytest.raises(ValueError, match=message):
        pixel_info_nce(student, **arguments)


@needs_linux
def test_peak_memory_is_under_a_tenth_of_the_dense_logits():
    """N = 1,568 pixels, K = 65,536 negatives: dense float32 logits take 392 MiB."""
    student = torch.randn(32, 32, 7, 7, requires_grad=True)
    teacher, negatives = torch.randn(32, 32, 7, 7), torch.randn(65_536, 32)

    def loss_and_gradient():
        pixel_info_nce(student, teacher, negatives, temperature=0.2).backward()

    assert peak_growth(loss_and_gradient) < 1568 * 65_536 * 4 / 10


def reference_cosine_smooth_l1(student: Tensor, teacher: Tensor, weight: float) -> Tensor:
    """Evaluate the definition one pixel and one channel at a time."""
    losses = []
    for image_s, image_t in zip(student, teacher, strict=True):
        for s, t in zip(image_s.flatten(1).T, image_t.flatten(1).T, strict=True):
            cosine = s @ t / (s.norm() * t.norm())
            gaps = [(a - b).abs() for a, b in zip(s, t, strict=True)]
            smooth = [gap**2 / 2 if gap < 1 else gap - 0.5 for gap in gaps]
            losses.append(weight * (1 - cosine) + (1 - weight) * torch.stack(smooth).mean())
    return torch.stack(losses).mean()


def reference_similarity_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Evaluate the definition one pair of pixels at a time."""

    def rows(image: Tensor) -> list[list[Tensor]]:
        pixels = [pixel / pixel.norm() for pixel in image.flatten(1).T]
        weights = [[torch.exp(a @ b / temperature) for b in pixels] for a in pixels]
        return [[weight / sum(row) for weight in row] for row in weights]

    losses = []
    for image_s, image_t in zip(student, teacher, strict=True):
        for q, p in zip(rows(image_s), rows(image_t), strict=True):
            losses.append(sum(a * torch.log(a / b) for a, b in zip(p, q, strict=True)))
    return torch.stack(losses).mean()


def assert_equals_reference(loss: Tensor, expected: Tensor, student: Tensor) -> None:
    (gradient,) = torch.autograd.grad(loss, student)
    (expected_gradient,) = torch.autograd.grad(expected, student)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("weight", [0.0, 0.5, 0.9, 1.0])
def test_cosine_smooth_l1_equals_the_definition(weight):
    student, teacher, _ = case(dtype=torch.float64)
    assert_equals_reference(
        cosine_smooth_l1(student, 2 * teacher, cosine_weight=weight),
        reference_cosine_smooth_l1(student, 2 * teacher, weight),
        student,
    )


def test_the_default_cosine_weight_is_nine_tenths():
    student, teacher, _ = case()
    expected = cosine_smooth_l1(student, teacher, cosine_weight=0.9)
    torch.testing.assert_close(cosine_smooth_l1(student, teacher), expected)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_similarity_kl_equals_the_definition(temperature):
    student, _, _ = case(dtype=torch.float64)
    teacher = torch.randn(3, 20, 2, 5, dtype=torch.float64)  # another number of channels
    assert_equals_reference(
        similarity_kl(student, teacher, temperature=temperature),
        reference_similarity_kl(student, teacher, temperature),
        student,
    )


def test_equal_maps_have_zero_loss():
    maps = torch.randn(2, 8, 3, 3, requires_grad=True)
    assert cosine_smooth_l1(maps, maps.detach()).item() == pytest.approx(0, abs=1e-6)
    permuted = maps.detach().flip(1)  # an isometry of the channels
    assert similarity_kl(maps, 5 * permuted, temperature=0.07).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    "loss", [cosine_smooth_l1, lambda s, t: similarity_kl(s, t, temperature=0.1)]
)
def test_regression_losses_give_a_gradient_to_the_student_only(loss):
    student, teacher, _ = case()
    teacher.requires_grad_()
    loss(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_regression_losses_are_computed_in_float32_under_autocast():
    student, teacher, _ = case()
    half = student.detach().bfloat16(), teacher.bfloat16()
    exact = half[0].float(), half[1].float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kl = similarity_kl(*half, temperature=0.07)
        regression = cosine_smooth_l1(*half)
    torch.testing.assert_close(kl, similarity_kl(*exact, temperature=0.07))
    torch.testing.assert_close(regression, cosine_smooth_l1(*exact))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, t: cosine_smooth_l1(s, t[..., :1]), "expected the same shape"),
        (
            lambda s, t: cosine_smooth_l1(s, t, cosine_weight=1.5),
            r"cosine_weight=1\.5: expected a value in \[0, 1\]",
        ),
        (
            lambda s, t: similarity_kl(s, t[:2], temperature=0.1),
            "expected the same batch size and grid",
        ),
        (lambda s, t: similarity_kl(s, t, temperature=-1.0), r"temperature=-1\.0: expected"),
        (
            lambda s, t: similarity_kl(s[..., :1, :1], t[..., :1, :1], temperature=0.1),
            "the feature map has one pixel: expected at least 2",
        ),
    ],
)
@pytest.mark.usefixtures("jaxtyping_off")
def test_invalid_arguments_of_the_regression_losses_are_named(call, message):
    student, teacher, _ = case()
    with pytest.raises(ValueError, match=message):
        call(student, teacher)
