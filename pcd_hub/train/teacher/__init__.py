"""The teacher of a distillation: its choice, its memory and its size."""
