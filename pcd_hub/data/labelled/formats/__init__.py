"""Read labels in the formats of annotation tools: YOLO, Pascal VOC, LabelMe and CVAT."""
