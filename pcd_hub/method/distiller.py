"""The trained module of a distillation: student, head and loss."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.profiler import record_function

from pcd_hub.method.resampling import resample

PixelLoss = Callable[..., Tensor]
"""Student map, teacher map and, for a contrastive loss, negatives -> a scalar."""


class Distiller(nn.Module):
    """Student and head, with the loss against a frozen teacher's feature map.

    It contains exactly the parameters that receive gradients, so that DistributedDataParallel can
    wrap it. The teacher and the key queue stay outside, because DDP would broadcast their buffers
    at every step.

    Args:
        student: Images ``(B, bands, H, W)`` -> feature maps ``(B, C, h, w)``; with finer heads a
            ``PixelGrid``.
        head: Last feature map -> map with the teacher's channels.
        loss: The loss of one map.
        pooled: Distil one mean vector per image.
        finer_heads: A head for each feature map before the last one, which are finer; the loss is
            then the mean over all these maps.
    """

    def __init__(
        self,
        student: nn.Module,
        head: nn.Module,
        *,
        loss: PixelLoss,
        pooled: bool = False,
        finer_heads: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.student = student
        """Images ``(B, bands, H, W)`` -> feature maps ``(B, C, h, w)``; the exported part."""
        self.head = head
        self.finer_heads = nn.ModuleList(finer_heads)
        self.loss = loss
        self.pooled = pooled
        """Distil one mean vector per image instead of the map, as an image-level baseline."""
        self.last_feature_maps = (torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
        """Student and teacher maps ``(B, C, h, w)`` of the last forward pass, for monitors."""
        self.last_prediction = torch.zeros(1, 1, 1, 1)
        """Output of the head in the last forward pass, for monitors."""

    def forward(
        self,
        views: Float[Tensor, "b bands height width"],
        teacher_map: Float[Tensor, "b d h w"],
        *negatives: Float[Tensor, "k d"],
    ) -> Float[Tensor, ""]:
        """Return the loss of one batch of normalised views against the teacher's feature map.

        With finer heads, the teacher's map has the size of the student's finest one, and is
        resampled for the others.
        """
        finer_maps: Sequence[Tensor] = ()
        finest_target = teacher_map
        with record_function("student"):
            if self.finer_heads:
                student_map, *finer_maps = self.student(views, 1 + len(self.finer_heads))
                teacher_map = _at_size_of(student_map, finest_target)
            else:
                student_map = self.student(views)
            self.last_feature_maps = (student_map.detach(), teacher_map)
            if self.pooled:
                student_map = student_map.mean((2, 3), keepdim=True)
                teacher_map = teacher_map.mean((2, 3), keepdim=True)
            student_map = self.head(student_map)
            self.last_prediction = student_map.detach()
            finer_maps = [
                head(each) for head, each in zip(self.finer_heads, finer_maps, strict=True)
            ]
        with record_function("loss"):
            loss = self.loss(student_map, teacher_map, *negatives)
            for each in finer_maps:
                loss = loss + self.loss(each, _at_size_of(each, finest_target), *negatives)
            return loss / (1 + len(finer_maps))


def _at_size_of(
    student: Float[Tensor, "b c h w"], teacher: Float[Tensor, "b d y x"]
) -> Float[Tensor, "b d h w"]:
    return resample(teacher, (student.shape[2], student.shape[3]))


def freeze_unused_parameters(
    student: nn.Module, images: Float[Tensor, "b _ height width"]
) -> tuple[str, ...]:
    """Freeze the parameters that the last feature map does not depend on, and return their names.

    Some backbones have layers after the last map (MobileNetV3's ``conv_head``, ConvNeXt's head
    norm). They get no gradient, which DistributedDataParallel treats as an error; the record lists
    them.

    Args:
        student: Images -> feature map.
        images: Two images or more, of any content; they set the size.
    """
    parameters = {name: p for name, p in student.named_parameters() if p.requires_grad}
    was_training = student.training
    with torch.enable_grad():
        feature_map = student.eval()(images)
        gradients = torch.autograd.grad(
            feature_map.sum(), list(parameters.values()), allow_unused=True
        )
    student.train(was_training)
    unreached = tuple(
        name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None
    )
    for name in unreached:
        parameters[name].requires_grad_(False)  # noqa: FBT003
    return unreached
