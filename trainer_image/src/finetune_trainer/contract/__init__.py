"""Documents shared with the operator: run spec, result, credentials, exit codes and model config."""
