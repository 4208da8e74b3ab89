"""Distillation, contrastive pre-training and fine-tuning with Accelerate (extra ``train``)."""
