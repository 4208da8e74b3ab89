"""Exactly what has gradients, hence exactly what DistributedDataParallel wraps."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.profiler import record_function

PixelLoss = Callable[..., Tensor]
"""Student pixels, teacher pixels and, if it contrasts, negatives -> a scalar."""


class Distiller(nn.Module):
    """Student and head, with the loss against a frozen teacher's pixels.

    The teacher and the key queue stay outside: inside they would be broadcast at every step and
    saved in every checkpoint.
    """

    def __init__(
        self, student: nn.Module, head: nn.Module, *, loss: PixelLoss, pooled: bool = False
    ) -> None:
        super().__init__()
        self.student = student
        """images ``(B, 3, H, W)`` -> ``(B, C, h, w)``; what is exported in the end."""
        self.head = head
        self.loss = loss
        self.pooled = pooled
        """Image-level distillation, to compare with: one mean vector an image on both sides."""
        self.last_pixels = (torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
        """The student's and the teacher's ``(B, C, h, w)`` of the last pass, for who watches."""

    def forward(
        self,
        views: Float[Tensor, "b 3 height width"],
        teacher_pixels: Float[Tensor, "b d h w"],
        *negatives: Float[Tensor, "k d"],
    ) -> Float[Tensor, ""]:
        """The loss of one batch: student pixels against ``teacher_pixels`` (and ``negatives``)."""
        with record_function("student"):
            student_pixels = self.student(views)
            self.last_pixels = (student_pixels.detach(), teacher_pixels)
            if self.pooled:
                student_pixels = student_pixels.mean((2, 3), keepdim=True)
                teacher_pixels = teacher_pixels.mean((2, 3), keepdim=True)
            student_pixels = self.head(student_pixels)
        with record_function("loss"):
            return self.loss(student_pixels, teacher_pixels, *negatives)


def freeze_unreached(student: nn.Module, *, image_size: int) -> tuple[str, ...]:
    """Freeze the parameters that the pixels do not depend on, and name them.

    Some backbones carry layers behind the last map (MobileNetV3's ``conv_head``, ConvNeXt's head
    norm). They would get no gradient, which DistributedDataParallel takes for a mistake, and must
    be told of in the record.
    """
    parameters = {name: p for name, p in student.named_parameters() if p.requires_grad}
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
