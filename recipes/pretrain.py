"""A teacher with a trained head, for your own images: MoCo v3 or SimCLR for timm ResNets.

    accelerate launch recipes/pretrain.py mocov3_r50 --data.source IMAGES
    python recipes/distill.py --teacher.source local-dir:runs/mocov3_r50/teacher ...

It writes a folder ``teacher/``: safetensors in half precision and their record, which
``local-dir:`` reads. MoCo v3 (arXiv:2104.02057) writes its own checkpoint layout as well,
``teacher.pth.tar``: ``mocov3_r50:FILE`` for a ResNet-50, ``mocov3:ARCH:FILE`` for others. SimCLR
(arXiv:2002.05709) is the one for small batches and little time. Results: recipes/README.md.
"""

from pcd_hub.train.configs.command_line import run
from pcd_hub.train.contrast import main

if __name__ == "__main__":
    run(main)
