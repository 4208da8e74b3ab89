"""Pre-train a teacher with a projection head on your own images: MoCo v3 or SimCLR, timm ResNets.

    accelerate launch recipes/pretrain.py mocov3_r50 --data.source IMAGES
    python recipes/distill.py --teacher.source local-dir:runs/mocov3_r50/teacher ...

The folder ``teacher/`` contains half-precision safetensors and their record, for ``local-dir:``.
MoCo v3 (arXiv:2104.02057) also writes ``teacher.pth.tar`` in its own layout: ``mocov3_r50:FILE``
for a ResNet-50, ``mocov3:ARCH:FILE`` for others. Use SimCLR (arXiv:2002.05709) for small batches
and short runs. ``--method.loss cross_entropy --method.labels FILE.csv`` trains with class labels
(columns file and class) on the same views, for comparison.

quickstart_teacher: 1,500 steps of 128 generated scenes, 2 CPU cores (AMD EPYC, shared): 47 minutes.
Mean IoU of a linear probe on 400 held-out scenes, n = 1: random weights 20.9, pre-trained 85.8.
mocov3_r50 and mocov3_r50_1000ep have not been run. All results: recipes/RESULTS.md.
"""

from pcd_hub.train.configs.command_line import run_main
from pcd_hub.train.contrast import main

if __name__ == "__main__":
    run_main(main)
