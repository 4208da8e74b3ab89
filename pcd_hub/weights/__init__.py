"""One weight's life: what it is, where it lies, how it is kept whole."""
