"""Read and write files safely: bounded reads, atomic writes, strict JSON."""
