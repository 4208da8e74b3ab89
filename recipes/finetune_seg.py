r"""Segmentation, fine-tuned: an FCN head on a backbone, everything trained.

One run is one backbone at one seed, in the folder with evaluation.json:

    python recipes/finetune_seg.py --data.source DIR --model resnet18.pcd        # small, a CPU
    accelerate launch --multi_gpu --num_processes 8 recipes/finetune_seg.py cityscapes_r18_fcn \
        --data.source cityscapes:DIR --model resnet18.pcd

DIR holds ``images/SPLIT``, ``masks/SPLIT`` and ``classes.json``. The first, on 418 photographs of
facades at 192 x 192, takes 2 to 3 minutes on one core and gives on 90 others, one seed: mean IoU
9.8 at random start, 15.5 with the quickstart student, 16.1 with its teacher. The second has not
been run.

The schedules are ours, after what is common: 40k steps of 16 crops, SGD with momentum 0.9, learning
rate 0.01 falling to 0 with power 0.9, no warm-up. Fewer images a step scale it by rule,
``--optim.global-batch-size 4``: a quarter of the learning rate, four times the iterations, so
that as many pictures are seen. ``--run.max-steps`` squeezes a schedule into fewer steps, which is
another protocol, and evaluation.json says so.

Everything is trained, batch norm too: the protocol under which a random start can learn. What
frozen features separate is another question, and linear_seg.py answers it. ``--run.resume`` goes on
from the last checkpoint, or scores a finished run again; ``compare.py`` joins models and seeds.

Reading order: this file -> finetuning.py -> fcn.py -> segmentation_batches.py. Results:
recipes/README.md.
"""

from pcd_hub.train.configs.command_line import run
from pcd_hub.train.segmentation.finetune import main

if __name__ == "__main__":
    run(main)
