"""Exactly what has gradients, hence exactly what DistributedDataParallel wraps."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pcd_hub.method.loss import pixel_info_nce


class Distiller(nn.Module):
    """Student and head, with the loss against a frozen teacher's pixels.

    The teacher and the key queue stay outside: inside they would be broadcast at every step and
    saved in every checkpoint.
    """

    def __init__(self, student: nn.Module, head: nn.Module, *, temperature: float) -> None:
        super().__init__()
        self.student = student
        """images ``(B, 3, H, W)`` -> ``(B, C, h, w)``; what is exported in the end."""
        self.head = head
        self.temperature = temperature

    def forward(
        self,
        views: Float[Tensor, "b 3 height width"],
        teacher_pixels: Float[Tensor, "b d h w"],
        negatives: Float[Tensor, "k d"],
    ) -> Float[Tensor, ""]:
        """The loss of one batch: student pixels against ``teacher_pixels`` and ``negatives``."""
        student_pixels = self.head(self.student(views))
        return pixel_info_nce(
            student_pixels, teacher_pixels, negatives, temperature=self.temperature
        )


def freeze_unreached(student: nn.Module, *, image_size: int) -> tuple[str, ...]:
    """Freeze the parameters that the pixels do not depend on, and name them.

    Some backbones carry layers behind the last map (MobileNetV3's ``conv_head``, ConvNeXt's head
    norm). They would get no gradient, which DistributedDataParallel takes for a mistake, and must
    be told of in the record.
    """
    parameters = dict(student.named_parameters())
    was_training = student.training
    with torch.enable_grad():
        pixels = student.eval()(torch.zeros(2, 3, image_size, image_size))
        gradients = torch.autograd.grad(pixels.sum(), list(parameters.values()), allow_unused=True)
    student.train(was_training)
    unreached = tuple(
        name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None
    )
    for name in unreached:
        parameters[name].requires_grad_(False)  # noqa: FBT003
    return unreached
