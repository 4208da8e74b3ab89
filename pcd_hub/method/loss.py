"""Dense distillation losses: PCD's contrastive loss, and two without negatives.

The memory of ``pixel_info_nce`` does not grow with pixels x negatives. ``cosine_smooth_l1`` and
``similarity_kl`` suit teachers without a projection head. Only the student receives gradients.

Shapes: N pixels (batch x height x width), K negatives, C channels.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

# Tiles are (rows, keys).
_CPU_TILE = (1024, 1024)  # fits the last-level cache; among the fastest of six sizes on 2 cores
_DEVICE_TILE = (8192, 2048)  # fewer, larger kernels for accelerators; 64 MiB in float32
_FLASH_CHANNELS, _FLASH_BLOCK = 256, 128  # CUDA's kernel: largest head dimension, rows per block
_FLASH_KEYS = 16_384  # smallest part of the bank on CPUs


def pixel_info_nce(
    student: Float[Tensor, "b c h w"],
    teacher: Float[Tensor, "b c h w"],
    negatives: Float[Tensor, "k c"],
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """Score each student pixel against its teacher pixel and ``k`` negatives (arXiv:2211.00218).

    With s, t the L2-normalised vectors at one position, n_k the normalised negatives and T the
    temperature, the loss is the mean over all pixels of
    ``-log(exp(s.t / T) / (exp(s.t / T) + sum_k exp(s.n_k / T)))``.

    Only the student receives a gradient. Peak memory is O((N + K) C): no N x K matrix is stored.
    Sums are accumulated in float32 (float64 for float64 inputs); under autocast the N x K products
    use its dtype.

    Args:
        student: Student feature map; it is normalised here.
        teacher: Teacher feature map on the same grid; it is normalised here.
        negatives: One vector per row, usually ``KeyQueue.keys``.
        temperature: T > 0; the released PCD code uses 0.2.

    Raises:
        ValueError: If the maps or the numbers of channels differ, or ``temperature`` is not
            positive.
    """
    _check_same_shape(student, teacher)
    if negatives.shape[1] != student.shape[1]:
        raise ValueError(
            f"negatives have {negatives.shape[1]} channels: expected {student.shape[1]}, as the "
            "feature maps have"
        )
    _check_temperature(temperature)
    student_NC = _unit_pixels(student)
    teacher_NC = _unit_pixels(teacher.detach())
    positive_N = (student_NC * teacher_NC).sum(1) / temperature
    negative_N = bank_log_sum_exp(student_NC, negatives.detach(), temperature=temperature)
    return (torch.logaddexp(positive_N, negative_N) - positive_N).mean()


def cosine_smooth_l1(
    student: Float[Tensor, "b c h w"],
    teacher: Float[Tensor, "b c h w"],
    *,
    cosine_weight: float = 0.9,
) -> Float[Tensor, ""]:
    """Regress each teacher pixel by a weighted sum of cosine distance and smooth L1.

    With s, t the vectors at one position, the loss is the mean over all pixels of
    ``w (1 - cos(s, t)) + (1 - w) mean_c smooth_l1(s_c - t_c)``, where ``smooth_l1(x)`` is
    ``x^2 / 2`` below 1 and ``|x| - 1/2`` above. AM-RADIO, UNIC and DUNE use w = 0.5, EUPE 0.9.

    Args:
        student: Student feature map.
        teacher: Teacher feature map on the same grid, standardised to unit variance per channel
            (``ChannelMoments.standardise``); otherwise a few large channels dominate the loss.
        cosine_weight: w in [0, 1].

    Raises:
        ValueError: If the maps differ in shape, or ``cosine_weight`` is out of range.
    """
    _check_same_shape(student, teacher)
    if not 0 <= cosine_weight <= 1:
        raise ValueError(f"cosine_weight={cosine_weight}: expected a value in [0, 1]")
    student_NC, teacher_NC = _pixels(student), _pixels(teacher.detach())
    cosine_N = F.cosine_similarity(student_NC, teacher_NC, dim=1)
    return cosine_weight * (1 - cosine_N).mean() + (1 - cosine_weight) * F.smooth_l1_loss(
        student_NC, teacher_NC
    )


def similarity_kl(
    student: Float[Tensor, "b c h w"], teacher: Float[Tensor, "b d h w"], *, temperature: float
) -> Float[Tensor, ""]:
    """Match the similarities between the pixels of each image (KL divergence).

    With p_ij the softmax over j of ``cos(t_i, t_j) / T`` within one image and q_ij the same for the
    student, the loss is the mean over all pixels i of ``sum_j p_ij log(p_ij / q_ij)``. The
    similarity of a pixel to itself, always 1, is included: it fixes the scale of the others.
    LightlyTrain's third distillation method uses such a term with T = 0.07.

    Args:
        student: Student feature map.
        teacher: Teacher feature map on the same grid; its number of channels may differ.
        temperature: T > 0.

    Raises:
        ValueError: If the grids differ or have fewer than two pixels, or ``temperature`` is not
            positive.
    """
    if student.shape[0] != teacher.shape[0] or student.shape[2:] != teacher.shape[2:]:
        raise ValueError(
            f"student map {tuple(student.shape)} and teacher map {tuple(teacher.shape)}: expected "
            "the same batch size and grid"
        )
    if student[0, 0].numel() < 2:
        raise ValueError("the feature map has one pixel: expected at least 2; use larger images")
    _check_temperature(temperature)
    target = _similarity_log_softmax(teacher.detach(), temperature)
    actual = _similarity_log_softmax(student, temperature)
    return F.kl_div(actual, target, reduction="batchmean", log_target=True)


def bank_log_sum_exp(
    query: Float[Tensor, "n c"], bank: Float[Tensor, "k c"], *, temperature: float
) -> Float[Tensor, " n"]:
    """Compute ``log(sum_k exp(query . unit(bank_k) / temperature))`` for each row of ``query``.

    Differentiable in ``query``.

    This is attention with keys = values = bank: the softmax denominator is the sum, and the
    attention output is its gradient times the temperature. One pass over tiles of the bank (online
    softmax) gives both, so the backward pass is free. PyTorch's flash attention does this pass on
    CPUs, and on GPUs in half precision for up to 256 channels.
    """
    return _BankLogSumExp.apply(query, bank, temperature)  # pyright: ignore[reportReturnType]


class _BankLogSumExp(Function):
    @staticmethod
    def forward(ctx: FunctionCtx, query: Tensor, bank: Tensor, temperature: float) -> Tensor:
        device = query.device.type
        autocast = torch.is_autocast_enabled(device)
        product_dtype = torch.get_autocast_dtype(device) if autocast else query.dtype
        attend = _attend_by_flash if _has_flash_kernel(query, product_dtype) else _attend
        with torch.autocast(device, enabled=False):
            log_sum_N, attended_NC = attend(query.detach(), bank, temperature, product_dtype)
        ctx.save_for_backward(attended_NC.div_(temperature))
        return log_sum_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: FunctionCtx, *grad_outputs: Tensor
    ) -> tuple[Tensor, None, None]:
        (gradient_NC,) = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
        return grad_outputs[0][:, None] * gradient_NC, None, None


def _attend(
    query_NC: Tensor, bank_KC: Tensor, temperature: float, product_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return log-sum-exp (N) and softmax-weighted mean (N, C) of the unit bank rows."""
    largest_N1 = query_NC.new_full((len(query_NC), 1), -torch.inf)
    sum_N1 = query_NC.new_zeros((len(query_NC), 1))
    attended_NC = torch.zeros_like(query_NC)
    scaled_NC = (query_NC / temperature).to(product_dtype)
    tile_rows, tile_keys = _CPU_TILE if query_NC.device.type == "cpu" else _DEVICE_TILE
    for keys in bank_KC.split(tile_keys):
        unit_kC = F.normalize(keys.to(query_NC.dtype), dim=1).to(product_dtype)
        for start in range(0, len(query_NC), tile_rows):
            rows = slice(start, start + tile_rows)
            logits_nk = (scaled_NC[rows] @ unit_kC.T).to(query_NC.dtype)
            largest_n1 = torch.maximum(largest_N1[rows], logits_nk.amax(1, keepdim=True))
            shrink_n1 = (largest_N1[rows] - largest_n1).exp_()
            weight_nk = logits_nk.sub_(largest_n1).exp_()
            sum_N1[rows] = sum_N1[rows] * shrink_n1 + weight_nk.sum(1, keepdim=True)
            attended_NC[rows] = attended_NC[rows] * shrink_n1 + (
                weight_nk.to(product_dtype) @ unit_kC
            )
            largest_N1[rows] = largest_n1
    return (largest_N1 + sum_N1.log()).squeeze(1), attended_NC.div_(sum_N1)


def _has_flash_kernel(query_NC: Tensor, product_dtype: torch.dtype) -> bool:
    """Check whether this device has a flash-attention kernel for these vectors."""
    if query_NC.device.type == "cpu":
        return product_dtype in {torch.float32, torch.bfloat16}
    if query_NC.device.type != "cuda" or product_dtype not in {torch.bfloat16, torch.float16}:
        return False
    if query_NC.shape[1] > _FLASH_CHANNELS or query_NC.shape[1] % 8:
        return False
    example = query_NC.detach()[None, None].to(product_dtype)
    params = torch.backends.cuda.SDPAParams(example, example, example, None, 0.0, False, False)  # noqa: FBT003
    return torch.backends.cuda.can_use_flash_attention(params)


def _attend_by_flash(
    query_NC: Tensor, bank_KC: Tensor, temperature: float, product_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Compute the same as :func:`_attend` by flash attention over parts of the bank.

    One head with one sequence does not fill a large GPU, so parts of the bank take the place of
    heads; their log-sum-exps weight them in the result.
    """
    unit_KC = F.normalize(bank_KC.to(query_NC.dtype), dim=1).to(product_dtype)
    parts = _bank_parts(len(query_NC), len(unit_KC), query_NC.device)
    keys_P1kC = unit_KC.unflatten(0, (parts, 1, -1))
    query_P1NC = query_NC.to(product_dtype).expand(parts, 1, -1, -1)
    flash = (
        torch.ops.aten._scaled_dot_product_flash_attention
        if query_NC.device.type == "cuda"
        else torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    )
    attended_P1NC, log_sum_P1N, *_ = flash(query_P1NC, keys_P1kC, keys_P1kC, scale=1 / temperature)
    log_sum_PN = log_sum_P1N.squeeze(1)[:, : len(query_NC)].to(query_NC.dtype)
    log_sum_N = log_sum_PN.logsumexp(0)
    share_PN = (log_sum_PN - log_sum_N).exp()
    attended_PNC = attended_P1NC.squeeze(1).to(query_NC.dtype)
    return log_sum_N, (share_PN[:, :, None] * attended_PNC).sum(0)


def _bank_parts(num_rows: int, num_keys: int, device: torch.device) -> int:
    """Choose the number of parts of the bank: a power of two that divides it.

    On CPUs, parts of at least 16,384 keys are up to a fifth faster than one part. On GPUs, there
    are enough parts for two blocks of rows per multiprocessor.
    """
    if device.type == "cuda":
        processors = torch.cuda.get_device_properties(device).multi_processor_count
        target = 2 * processors / -(-num_rows // _FLASH_BLOCK)
    else:
        target = num_keys / _FLASH_KEYS
    parts = 1
    while parts < target and num_keys % (2 * parts) == 0:
        parts *= 2
    return parts


def _similarity_log_softmax(maps: Tensor, temperature: float) -> Tensor:
    """``(B, C, H, W)`` -> ``(B*H*W, H*W)``: each pixel's log-softmax over its image's pixels."""
    rows_BNC = _unit_pixels(maps).unflatten(0, (len(maps), -1))
    with torch.autocast(maps.device.type, enabled=False):  # cheap, and exact
        logits_BNN = rows_BNC @ rows_BNC.mT / temperature
    return logits_BNN.log_softmax(2).flatten(0, 1)


def _unit_pixels(maps: Tensor) -> Tensor:
    """``(B, C, H, W)`` -> ``(B*H*W, C)`` unit rows in at least float32."""
    return F.normalize(_pixels(maps), dim=1)


def _pixels(maps: Tensor) -> Tensor:
    """``(B, C, H, W)`` -> ``(B*H*W, C)`` in at least float32."""
    rows = maps.flatten(2).transpose(1, 2).flatten(0, 1)
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def _check_same_shape(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"student map {tuple(student.shape)} and teacher map {tuple(teacher.shape)}: expected "
            "the same shape"
        )


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: expected a value > 0")
