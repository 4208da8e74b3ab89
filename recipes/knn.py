"""k-NN and linear classification of whole images, and agreement with a teacher without labels.

    python recipes/knn.py --data.source DIR --models random:resnet18 resnet18.pcd
    python recipes/knn.py --report.source IMAGES --models random:resnet18 resnet18.pcd

DIR contains ``SPLIT/CLASS/``. With labels: weighted k-NN and a linear classifier on average-pooled
embeddings. Without labels, on any images: how often the location that the teacher finds most
similar is among the model's nearest, linear CKA with the teacher, and the effective rank.

Hardware and time: one CPU core, 3 min for three models and three seeds on 600 + 593 images.
Result on 30 classes of Caltech-101, n = 593, three seeds, with an earlier quickstart student: k-NN
top-1 14.8 +- 1.2 with random weights, 27.5 with resnet18.pcd, 33.9 with its teacher.
The configuration imagenet has not been run. All results: recipes/RESULTS.md.

From Python: ``pcd_hub.evaluate.ClassificationProbe`` and ``pcd_hub.evaluate.LabelFreeReport``.
"""

from pcd_hub.train.configs.command_line import run_main
from pcd_hub.train.frozen.knn import main

if __name__ == "__main__":
    run_main(main)
