import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pcd_hub.method.loss import (
    _bank_parts,
    _flash_takes,
    bank_log_sum_exp,
    cosine_smooth_l1,
    pixel_info_nce,
    similarity_kl,
)


def slow_pixel_info_nce(
    student: Tensor, teacher: Tensor, negatives: Tensor, temperature: float
) -> Tensor:
    """The definition, one pixel at a time, in float64."""
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
    expected = slow_pixel_info_nce(student, teacher, negatives, temperature)
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
def test_equal_logits_give_log_k_plus_one(k):
    same = torch.ones(2, 4, 3, 3)
    loss = pixel_info_nce(same, same, torch.ones(k, 4), temperature=0.2)
    torch.testing.assert_close(loss, torch.tensor(float(k + 1)).log(), rtol=1e-6, atol=0)


def test_small_temperature_stays_finite():
    student, teacher, negatives = case()
    loss = pixel_info_nce(student, teacher, negatives, temperature=1e-3)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_only_the_student_gets_a_gradient():
    student, teacher, negatives = case()
    teacher.requires_grad_()
    negatives.requires_grad_()
    pixel_info_nce(student, teacher, negatives, temperature=0.2).backward()
    assert student.grad is not None
    assert teacher.grad is None
    assert negatives.grad is None


def test_bfloat16_autocast_is_as_exact_as_dense_bfloat16_logits():
    """The tolerance is the error that the dense version makes in the same products."""
    student, teacher, negatives = case(k=301)
    exact = slow_pixel_info_nce(student, teacher, negatives, 0.2)
    (exact_gradient,) = torch.autograd.grad(exact, student)
    with torch.autocast("cpu", torch.bfloat16):
        ours = pixel_info_nce(student, teacher, negatives, temperature=0.2)
        s = F.normalize(student.flatten(2).transpose(1, 2).flatten(0, 1), dim=1)
        t = F.normalize(teacher.flatten(2).transpose(1, 2).flatten(0, 1), dim=1)
        logits = torch.cat([(s * t).sum(1, keepdim=True), s @ F.normalize(negatives, dim=1).T], 1)
        dense = F.cross_entropy(logits.float() / 0.2, torch.zeros(len(logits), dtype=torch.int64))
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
    for keys_a_part, flash in ((16, True), (k, True), (k, False)):
        monkeypatch.setattr("pcd_hub.method.loss._FLASH_KEYS", keys_a_part)
        if not flash:
            monkeypatch.setattr("pcd_hub.method.loss._flash_takes", lambda *_: False)
        found = bank_log_sum_exp(query, bank, temperature=0.2)
        results.append((found, *torch.autograd.grad(found.square().sum(), query)))
    for parts_or_one in results[:2]:
        torch.testing.assert_close(parts_or_one, results[2], rtol=1e-5, atol=1e-4)


def test_the_bank_is_divided_no_further_than_it_can_be(monkeypatch):
    cpu = torch.device("cpu")
    assert [_bank_parts(128, k, cpu) for k in (4096, 16_384, 65_536, 65_534)] == [1, 1, 4, 2]


def test_float64_and_wide_vectors_on_gpus_have_no_flash_attention():
    assert _flash_takes(torch.ones(4, 8), torch.float32)
    assert not _flash_takes(torch.ones(4, 8, dtype=torch.float64), torch.float64)


@pytest.mark.gpu
@pytest.mark.parametrize("channels", [128, 256, 512])
def test_on_a_gpu_it_is_as_exact_as_dense_bfloat16_logits(channels):
    """512 channels are too wide for flash attention and take the tiles."""
    query = F.normalize(torch.randn(6272, channels, device="cuda"), dim=1).requires_grad_()
    bank = F.normalize(torch.randn(8192, channels, device="cuda"), dim=1)
    assert _flash_takes(query, torch.bfloat16) == (channels <= 256)
    exact = (query.double() @ bank.double().T / 0.2).logsumexp(1)
    (exact_gradient,) = torch.autograd.grad(exact.sum(), query)
    with torch.autocast("cuda", torch.bfloat16):
        dense = (query @ bank.T).float().div(0.2).logsumexp(1)
        ours = bank_log_sum_exp(query, bank, temperature=0.2)
    (dense_gradient,) = torch.autograd.grad(dense.sum(), query)
    (gradient,) = torch.autograd.grad(ours.sum(), query)
    assert (ours - exact).abs().max() <= 2 * (dense - exact).abs().max()
    error = (gradient - exact_gradient).norm()
    assert error <= 2 * (dense_gradient - exact_gradient).norm()


def test_log_sum_exp_passes_gradcheck():
    query = F.normalize(torch.randn(4, 6, dtype=torch.float64), dim=1).requires_grad_()
    bank = torch.randn(9, 6, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda q: bank_log_sum_exp(q, bank, temperature=0.3), query)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"negatives": torch.ones(5, 3)}, "negatives have 3 channels, the maps 8"),
        ({"teacher": torch.ones(3, 8, 2, 4)}, "must agree in shape"),
    ],
)
def test_wrong_arguments_are_named(change, message, jaxtyping_off):
    student, teacher, negatives = case()
    arguments = {"teacher": teacher, "negatives": negatives, "temperature": 0.2} | change
    with pytest.raises(ValueError, match=message):
        pixel_info_nce(student, **arguments)


_PEAK = """
import torch
from pcd_hub.method.loss import pixel_info_nce
torch.set_num_threads(2)
def memory(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
student = torch.randn(128, 256, 7, 7, requires_grad=True)
teacher, negatives = torch.randn(128, 256, 7, 7), torch.randn(65536, 256)
pixel_info_nce(student[:1], teacher[:1], negatives[:64], temperature=0.2).backward()
student.grad = None
open("/proc/self/clear_refs", "w").write("5")
before = memory("VmRSS")
pixel_info_nce(student, teacher, negatives, temperature=0.2).backward()
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_under_a_tenth_of_the_dense_logits():
    """N = 6,272 pixels, K = 65,536 negatives: dense float32 logits are 1.53 GiB."""
    out = subprocess.run([sys.executable, "-c", _PEAK], capture_output=True, text=True, check=True)
    assert int(out.stdout) < 6272 * 65_536 * 4 / 10


def slow_cosine_smooth_l1(student: Tensor, teacher: Tensor, weight: float) -> Tensor:
    """The definition, one pixel and one channel at a time."""
    losses = []
    for image_s, image_t in zip(student, teacher, strict=True):
        for s, t in zip(image_s.flatten(1).T, image_t.flatten(1).T, strict=True):
            cosine = s @ t / (s.norm() * t.norm())
            gaps = [(a - b).abs() for a, b in zip(s, t, strict=True)]
            smooth = [gap**2 / 2 if gap < 1 else gap - 0.5 for gap in gaps]
            losses.append(weight * (1 - cosine) + (1 - weight) * torch.stack(smooth).mean())
    return torch.stack(losses).mean()


def slow_similarity_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The definition, one pair of pixels at a time."""

    def rows(image: Tensor) -> list[list[Tensor]]:
        pixels = [pixel / pixel.norm() for pixel in image.flatten(1).T]
        weights = [[torch.exp(a @ b / temperature) for b in pixels] for a in pixels]
        return [[weight / sum(row) for weight in row] for row in weights]

    losses = []
    for image_s, image_t in zip(student, teacher, strict=True):
        for q, p in zip(rows(image_s), rows(image_t), strict=True):
            losses.append(sum(a * torch.log(a / b) for a, b in zip(p, q, strict=True)))
    return torch.stack(losses).mean()


def assert_equals_its_slow_twin(loss: Tensor, expected: Tensor, student: Tensor) -> None:
    (gradient,) = torch.autograd.grad(loss, student)
    (expected_gradient,) = torch.autograd.grad(expected, student)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("weight", [0.0, 0.5, 0.9, 1.0])
def test_cosine_smooth_l1_equals_the_definition(weight):
    student, teacher, _ = case(dtype=torch.float64)
    assert_equals_its_slow_twin(
        cosine_smooth_l1(student, 2 * teacher, cosine_weight=weight),
        slow_cosine_smooth_l1(student, 2 * teacher, weight),
        student,
    )


def test_by_default_direction_counts_nine_tenths():
    student, teacher, _ = case()
    expected = cosine_smooth_l1(student, teacher, cosine_weight=0.9)
    torch.testing.assert_close(cosine_smooth_l1(student, teacher), expected)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_similarity_kl_equals_the_definition(temperature):
    student, _, _ = case(dtype=torch.float64)
    teacher = torch.randn(3, 20, 2, 5, dtype=torch.float64)  # channels need not agree
    assert_equals_its_slow_twin(
        similarity_kl(student, teacher, temperature=temperature),
        slow_similarity_kl(student, teacher, temperature),
        student,
    )


def test_the_same_maps_cost_nothing():
    maps = torch.randn(2, 8, 3, 3, requires_grad=True)
    assert cosine_smooth_l1(maps, maps.detach()).item() == pytest.approx(0, abs=1e-6)
    turned = maps.detach().flip(1)  # an isometry of the channels
    assert similarity_kl(maps, 5 * turned, temperature=0.07).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    "loss", [cosine_smooth_l1, lambda s, t: similarity_kl(s, t, temperature=0.1)]
)
def test_of_the_other_losses_too_only_the_student_gets_a_gradient(loss):
    student, teacher, _ = case()
    teacher.requires_grad_()
    loss(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_the_other_losses_are_computed_in_float32_under_autocast():
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
        (lambda s, t: cosine_smooth_l1(s, t[..., :1]), "must agree in shape"),
        (
            lambda s, t: cosine_smooth_l1(s, t, cosine_weight=1.5),
            r"is 1\.5, it must be in 0 \.\. 1",
        ),
        (lambda s, t: similarity_kl(s, t[:2], temperature=0.1), "must agree in batch and grid"),
        (lambda s, t: similarity_kl(s, t, temperature=-1.0), r"temperature is -1\.0"),
        (
            lambda s, t: similarity_kl(s[..., :1, :1], t[..., :1, :1], temperature=0.1),
            "a grid of one pixel has no similarities",
        ),
    ],
)
@pytest.mark.usefixtures("jaxtyping_off")
def test_bad_input_of_the_other_losses_is_named(call, message):
    student, teacher, _ = case()
    with pytest.raises(ValueError, match=message):
        call(student, teacher)
