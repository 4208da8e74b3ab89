"""Evaluation of frozen backbones: probes, k-NN, receptive fields and results tables.

Nothing here needs Accelerate; ``pip install .`` is enough. Any model is opened by one string
(``resnet18.pcd``, ``resnet18.a1_in1k``, ``random:resnet18`` ...: the table in ``models.py``).

Probe a model on a labelled segmentation set, e.g. a folder with ``images/SPLIT``, ``masks/SPLIT``
and ``classes.json``::

    from pcd_hub.evaluate import SegmentationProbe, open_segmentation

    probe = SegmentationProbe(open_segmentation("DIR", "train"), open_segmentation("DIR", "val"))
    print(probe.score("resnet18.pcd").metrics)  # {"mean IoU": (41.2,), "pixel accuracy": (78.9,)}

Compare several models over several seeds::

    table = probe.empty_table(seeds=(0, 1, 2))
    for name in ("random:resnet18", "resnet18.pcd"):
        table = table.with_scores(probe.score(name, table.seeds))
    print(table.table())  # Markdown; table.save(folder) writes evaluation.json

``ClassificationProbe`` and ``LabelFreeReport`` are used in the same way. Extract feature maps::

    from pcd_hub.evaluate import open_model, feature_extractor

    extract = feature_extractor(open_model("resnet18.pcd"), 224)
    maps = extract(images)  # (b, 3, 224, 224) in [0, 1] -> (b, 512, 7, 7)
"""

from pcd_hub.data.labelled.classification import open_classification
from pcd_hub.data.labelled.segmentation import open_segmentation
from pcd_hub.evaluate.benchmark import Benchmark
from pcd_hub.evaluate.classification import ClassificationProbe, linear_classifier
from pcd_hub.evaluate.comparison import add_to_weight, joined_tables
from pcd_hub.evaluate.feature_maps import centre_crops, extract_feature_maps, feature_extractor
from pcd_hub.evaluate.label_free import LabelFreeReport
from pcd_hub.evaluate.models import EvaluatedModel, open_model
from pcd_hub.evaluate.receptive_field import effective_receptive_field
from pcd_hub.evaluate.results import Evaluation, ModelScores, join
from pcd_hub.evaluate.segmentation import LabelledImages, LinearProbe, ProbeResult
from pcd_hub.evaluate.segmentation_probe import SegmentationProbe
from pcd_hub.evaluate.stage_features import StageFeatures

__all__ = [
    "Benchmark",
    "ClassificationProbe",
    "EvaluatedModel",
    "Evaluation",
    "LabelFreeReport",
    "LabelledImages",
    "LinearProbe",
    "ModelScores",
    "ProbeResult",
    "SegmentationProbe",
    "StageFeatures",
    "add_to_weight",
    "centre_crops",
    "effective_receptive_field",
    "extract_feature_maps",
    "feature_extractor",
    "join",
    "joined_tables",
    "linear_classifier",
    "open_classification",
    "open_model",
    "open_segmentation",
]
