"""The check of labels before a run trains on them."""
