"""Weights on the Hugging Face Hub: fetch, verify, publish."""
