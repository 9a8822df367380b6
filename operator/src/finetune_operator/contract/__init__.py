"""Documents shared with the trainer: run spec, result and credentials."""
