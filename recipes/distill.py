r"""PCD, pixel-wise contrastive distillation (arXiv:2211.00218): frozen teacher, small student.

No labels are needed. Two ways to start:

    python recipes/distill.py              # config quickstart: offline, CPU, minutes
    accelerate launch recipes/distill.py pcd_r18 \
        --teacher.source mocov3_r50:r-50-1000ep.pth.tar --data.source IMAGES

Reading order: this file -> pcd_hub/method/distiller.py -> pcd_hub/method/loss.py. Results:
recipes/README.md.
"""

from pcd_hub.train.configs.command_line import run
from pcd_hub.train.distill import main

if __name__ == "__main__":
    run(main)
