r"""Train a linear classifier on a frozen backbone, as MoCo evaluates on ImageNet: SGD on crops.

    python recipes/linear_cls.py --data.source DIR --model resnet18.pcd      # small, on a CPU
    accelerate launch --multi_gpu --num_processes 8 recipes/linear_cls.py imagenet_mocov3 \
        --data.source IMAGENET --model resnet18.pcd

DIR contains ``SPLIT/CLASS/``. One run trains one layer at one seed and writes evaluation.json into
its folder; compare.py joins models and seeds. ``--run.resume`` continues from the last checkpoint,
or scores a finished run again. Without a checkout:
``python -m pcd_hub.train.linear_classification``.

imagenet_mocov3 and imagenet_mocov2 (GPUs, hours) have not been run. knn.py fits the same layer on
features without augmentation in minutes, under another protocol. All results: recipes/RESULTS.md.
"""

from pcd_hub.train.configs.command_line import run_main
from pcd_hub.train.linear_classification import main

if __name__ == "__main__":
    run_main(main)
