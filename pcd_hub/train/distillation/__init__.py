"""A distillation: its state, and how it is built and moved to its device."""
