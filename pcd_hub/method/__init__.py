"""The method of the paper: loss, queue, heads, optimizer. Depends on torch alone."""
