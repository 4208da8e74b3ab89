r"""Detection: Mask R-CNN or Faster R-CNN trained on a backbone, scored as COCO does.

One run is one backbone at one seed, in the folder with evaluation.json:

    python recipes/detect.py --data.source DATA --model resnet18.pcd        # config small, a CPU
    accelerate launch --multi_gpu --num_processes 8 recipes/detect.py coco_r18_fpn_1x \
        --data.source COCO --model resnet18.pcd

The first, on 205 blood smears (BCCD at 320 x 240), took 6 to 14 minutes on one busy core and gave
on 87 others, three seeds: box AP 44.9 +- 0.9 at random start, 46.5 +- 0.4 with the quickstart
student. The second has not been run.

The schedules are detectron2's: batches of 16, learning rate 0.02, 90k iterations (1x) or 180k (2x),
a tenth of the learning rate after six and again after eight ninths, 1000 iterations of warm-up.
Fewer images a step scale it by rule, ``--optim.global-batch-size 4``: a quarter of the learning
rate, four times the iterations, so that as many pictures are seen. ``--run.max-steps`` squeezes a
schedule into fewer steps, which is another protocol, and evaluation.json says so.

Everything is trained, batch norm too, and there is batch norm in the pyramid or behind the C4 head:
the protocol for backbones trained without labels, and the one under which a random start can learn.
``--detector.norm frozen --detector.frozen-stages 2`` is that of supervised ImageNet backbones.
Pictures without objects are left out of training, not of the test; crowds likewise.
``--run.resume`` goes on from the last checkpoint, or scores a finished run again.

Reading order: this file -> finetuning.py -> detectors.py -> detection_batches.py -> coco_data.py.
Results: recipes/README.md.
"""

from pcd_hub.train.configs.command_line import run
from pcd_hub.train.detection.detect import main

if __name__ == "__main__":
    run(main)
