import torch
from accelerate import Accelerator
from torch import nn

from pcd_hub.method.distiller import Distiller
from pcd_hub.method.loss import cosine_smooth_l1
from pcd_hub.method.resampling import resample
from pcd_hub.train.held_out.scorer import Scorer
from tests.train.held_out.conftest import own_precision  # noqa: F401


def score(student, teacher):
    images = torch.randint(0, 256, (6, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    scorer = Scorer(
        accelerator=Accelerator(cpu=True),
        images=images.to(torch.uint8),
        distiller=Distiller(student, nn.Identity(), loss=cosine_smooth_l1),
        teacher=teacher,
        normalise=lambda images: images,
        negatives=False,
        moments=None,
        batch_size=4,
    )
    return scorer.score(1)


def test_a_finer_map_of_the_teacher_is_compared_at_the_size_of_the_students(own_precision):  # noqa: F811
    torch.manual_seed(0)
    student, teacher = nn.Conv2d(3, 8, 8, stride=8).eval(), nn.Conv2d(3, 8, 4, stride=4).eval()
    found = score(student, teacher)
    assert found == score(student, lambda images: resample(teacher(images), (4, 4)))
    assert found != score(student, lambda images: teacher(images)[:, :, ::2, ::2])


def test_a_teacher_with_the_students_maps_agrees_completely(own_precision):  # noqa: F811
    torch.manual_seed(0)
    student = nn.Conv2d(3, 8, 8, stride=8).eval()
    found = score(student, student)
    assert found.means()["retrieval"] == 100
    assert found.means()["cka"] > 99.9
