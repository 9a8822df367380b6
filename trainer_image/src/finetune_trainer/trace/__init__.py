"""The GPU memory of a run, traced with the trainer's own step on tensors without values."""
