"""Labelled images: classification, segmentation and COCO-format sets."""
