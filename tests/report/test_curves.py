import json

import numpy as np
from PIL import Image

from pcd_hub.report.curves import save_training_curve


def test_the_curve_is_drawn_from_the_metrics(tmp_path):
    lines = [{"step": step, "loss": 5 - step / 10, "lr": 0.1} for step in range(20)]
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    save_training_curve(tmp_path / "a.png", metrics)
    save_training_curve(tmp_path / "b.png", metrics)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    blue = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    line = (blue[..., 2] - blue[..., 0]) > 80
    columns = np.flatnonzero(line.any(0))
    heights = [int(np.flatnonzero(line[:, x]).mean()) for x in (columns[20], columns[-20])]
    assert heights[0] < heights[1], "the loss falls from left to right"
