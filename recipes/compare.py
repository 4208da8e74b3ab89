"""Join the results of several evaluations into tables, and add them to a weight's record.

    python recipes/compare.py runs/linear_seg runs/knn
    python recipes/compare.py runs/* --run.output-dir comparison --into resnet18.pcd

Runs of the same evaluation on different models or seeds become one table, models by metrics,
with the best score in bold. ``--into`` adds the tables to the record and card of a weight, in the
local store or in a run's ``export/``, if exactly that file was measured (same sha256).

Hardware and time: seconds on a CPU. From Python: ``pcd_hub.evaluate.joined_tables`` and
``pcd_hub.evaluate.add_to_weight``.
"""

from pcd_hub.train.configs.command_line import run_main
from pcd_hub.train.frozen.compare import main

if __name__ == "__main__":
    run_main(main)
