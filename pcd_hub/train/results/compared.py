"""The models that the closing measurements of a run compare: start, student and teacher."""

from pcd_hub.evaluate.models import EvaluatedModel
from pcd_hub.models.entries import entry_cfg
from pcd_hub.train.distillation.state import Distillation

SUBJECT = "distilled student"


def student_model(d: Distillation, *, name: str = "") -> EvaluatedModel:
    """Return the student for an evaluation, by default under the name of its architecture."""
    cfg = entry_cfg(d.config.student.arch)
    return EvaluatedModel(
        name=name or d.config.student.arch, model=d.student, mean=cfg.mean, std=cfg.std
    )


def compared_models(d: Distillation) -> list[EvaluatedModel]:
    """Return start, student and teacher, those that have stages."""
    cfg, facts = entry_cfg(d.config.student.arch), d.teacher.facts
    start, teacher = d.start, d.teacher.grid.model
    models = [
        EvaluatedModel(name=d.start_label, model=start, mean=cfg.mean, std=cfg.std),
        student_model(d, name=SUBJECT),
        EvaluatedModel(name="teacher", model=teacher, mean=facts.mean, std=facts.std),
    ]
    # a module from Python may lack them
    return [each for each in models if hasattr(each.model, "forward_intermediates")]
