"""Train a projection head for a teacher without one, by contrast on its frozen features.

    python recipes/fit_head.py IMAGES --teacher timm:NAME --output-dir DIR
    pcd-hub distill IMAGES --teacher local-dir:DIR/teacher

PCD applies the projection head of a contrastively trained teacher at each location of its feature
map (SpatialAdaptor). Most teachers have none: DINOv2, supervised networks. Here the teacher's
pooled features of a few views of each image are computed once, and a head is trained on them.
``DIR/teacher`` contains teacher, head and record. Interrupted, it continues with ``--resume DIR``.

tf_efficientnet_lite0 on 2,000 photographs (views of 96 px, seen at 128 px), one shared CPU core:
two minutes for the features of four views, half a minute for 60 steps of 512 images. Retrieval
top-1 of 200 held-out images, n = 1: 79.5 with the teacher's pooled features, 83.1 with the head.
"""

from pcd_hub.train.configs.command_line import run_main
from pcd_hub.train.teacher.head.fit import main

if __name__ == "__main__":
    run_main(main)
