"""Several processes, the ranks, share the steps of one run: their group, their rows, their gradients and their launch."""
