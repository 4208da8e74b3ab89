"""Figures of features: feature maps as colours, and effective receptive fields.

    python recipes/look.py --data.source IMAGES --models random:resnet18 resnet18.pcd

``pca.png`` shows the images, then the feature maps of the teacher and of each model, with their
first three principal components as RGB. ``receptive_field.png`` shows how strongly the centre of
the last feature map depends on each image pixel, and the side of the square that holds half of it.

Hardware and time: seconds on a CPU. Result on street facades at 192 x 192, n = 8, with an earlier
quickstart student: half of the receptive field within 4 % of the image's side with random weights,
33 % with resnet18.pcd, 67 % with resnet18_mhsa.pcd.

From Python: ``pcd_hub.evaluate.effective_receptive_field`` and ``pcd_hub.report.features``.
"""

from pcd_hub.train.configs.command_line import run_main
from pcd_hub.train.frozen.feature_figures import main

if __name__ == "__main__":
    run_main(main)
