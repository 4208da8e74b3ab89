"""Labelled data sets: classification, segmentation and COCO format."""
