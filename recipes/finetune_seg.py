r"""Fine-tune a backbone with an FCN head for semantic segmentation.

    python recipes/finetune_seg.py --data.source DIR --model resnet18.pcd    # small, on a CPU
    accelerate launch --multi_gpu --num_processes 8 recipes/finetune_seg.py cityscapes_r18_fcn \
        --data.source cityscapes:DIR --model resnet18.pcd

DIR contains ``images/SPLIT``, ``masks/SPLIT`` and ``classes.json``. One run trains one backbone at
one seed and writes evaluation.json into its folder; compare.py joins models and seeds.
``--run.resume`` continues from the last checkpoint, or scores a finished run again. Without a
checkout: ``python -m pcd_hub.train.segmentation.finetune``.

small: 418 photographs of facades at 192 x 192, one CPU core: 2 to 3 minutes. Mean IoU on 90 others,
n = 1 seed: random weights 9.8, an earlier quickstart student 15.5, its teacher 16.1. cityscapes_*,
voc_* and ade20k_* have not been run. All results: recipes/RESULTS.md.

The schedules follow common practice, not a paper: 40k steps of 16 crops, SGD with momentum 0.9,
learning rate 0.01 falling to 0 with power 0.9, no warm-up. ``--optim.global-batch-size 4`` scales
them: a quarter of the learning rate, four times the iterations, so the model sees the same number
of images. ``--run.max-steps`` compresses the schedule; evaluation.json records that.

All layers are trained, batch norm too, so random weights can learn. linear_seg.py measures frozen
features instead.
"""

from pcd_hub.train.configs.command_line import run_main
from pcd_hub.train.segmentation.finetune import main

if __name__ == "__main__":
    run_main(main)
