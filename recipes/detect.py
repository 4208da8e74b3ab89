r"""Train Mask R-CNN or Faster R-CNN on a backbone, and score it by COCO's rules.

    python recipes/detect.py --data.source DATA --model resnet18.pcd     # config small, on a CPU
    accelerate launch --multi_gpu --num_processes 8 recipes/detect.py coco_r18_fpn_1x \
        --data.source COCO --model resnet18.pcd

One run trains one backbone at one seed and writes evaluation.json into its folder; compare.py joins
models and seeds. ``--run.resume`` continues from the last checkpoint, or scores a finished run
again. Without a checkout: ``python -m pcd_hub.train.detection.detect``.

small: 205 blood smears (BCCD, 320 x 240), one CPU core (shared): 6 to 14 minutes. Box AP on 87 held
out images, n = 3 seeds: random weights 44.9 +- 0.9, an earlier quickstart's student 46.5 +- 0.4.
coco_* and voc_* have not been run. All results: recipes/RESULTS.md.

Schedules are detectron2's: batches of 16, learning rate 0.02, 90k iterations (1x) or 180k (2x),
divided by 10 after 6/9 and 8/9 of them, 1000 iterations of warm-up. ``--optim.global-batch-size 4``
scales them: a quarter of the learning rate, four times the iterations, so the detector sees the
same number of images. ``--run.max-steps`` compresses the schedule; evaluation.json records that.

All layers are trained, with batch norm in the backbone and in the pyramid or after the C4 head:
the protocol for backbones pre-trained without labels, under which random weights can learn.
``--detector.norm frozen --detector.frozen-stages 2`` is the protocol for supervised ImageNet
backbones. Training skips crowds and images without objects; the evaluation does not skip them.
"""

from pcd_hub.train.configs.command_line import run_main
from pcd_hub.train.detection.detect import main

if __name__ == "__main__":
    run_main(main)
