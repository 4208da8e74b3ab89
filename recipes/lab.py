r"""Run a list of distillations and their evaluations, and compare them over several seeds.

    python recipes/lab.py recipes/configs/lab_photos.yaml --images DIR --teacher SOURCE \
        --labelled DIR --output-dir runs/lab_photos
    python recipes/lab.py recipes/configs/lab_photos.yaml --output-dir runs/lab_photos --table

The file lists rows, each with the options in which it differs from the base, seeds and
evaluations. All rows are run with the first seed, then with the second. The same command continues
after an interruption, also after ``kill -9``. A run that fails is shown as failed in the table, and
the others continue; ``--retry-failed`` runs it again. ``--only ROW ...``, ``--evaluations NAME
...`` and ``--seeds 0,1,2`` run a part.

table.md and table.json hold mean and standard deviation over the training seeds, the paired
difference from the baseline, and whether it is within noise. ``rows/ROW/seed-SEED`` holds each run
with its record. The format of the file: ``pcd_hub/train/lab/plan.py``.

lab_photos: 395 steps of 32 photographs at 96 px, about 10 minutes on one CPU core (AMD EPYC,
AVX-512 BF16) for a row and seed, and a few minutes for the two probes.
"""

from pcd_hub.train.configs.command_line import run_main
from pcd_hub.train.lab.main import main

if __name__ == "__main__":
    run_main(main)
