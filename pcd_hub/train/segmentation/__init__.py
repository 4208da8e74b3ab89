"""Semantic segmentation, fine-tuned with an FCN head."""
