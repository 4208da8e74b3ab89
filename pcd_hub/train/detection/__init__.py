"""Object detection and instance segmentation, fine-tuned on COCO-format data."""
