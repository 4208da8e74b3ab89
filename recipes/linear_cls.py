r"""Linear classification as MoCo evaluates on ImageNet: SGD and crops, on a frozen backbone.

One run is one backbone at one seed, in the folder with evaluation.json:

    python recipes/linear_cls.py --data.source DIR --model resnet18.pcd          # small, a CPU
    accelerate launch --multi_gpu --num_processes 8 recipes/linear_cls.py imagenet_mocov3 \
        --data.source IMAGENET --model resnet18.pcd

DIR holds ``SPLIT/CLASS/``. The second has not been run, nor has imagenet_mocov2. knn.py fits the
same layer in one go on vectors that are computed once, without augmentation: minutes instead of
hours, another protocol, other numbers.

``--run.resume`` goes on from the last checkpoint, or scores a finished run again; ``compare.py``
joins models and seeds. Reading order: this file -> finetuning.py -> pixels.py.
"""

from pcd_hub.train.configs.command_line import run
from pcd_hub.train.linear_classification import main

if __name__ == "__main__":
    run(main)
