"""Documents shared with the operator: run spec, result, exit codes and model config."""
