"""The NF4 checkpoint: kernels on weights, files, build and cache."""
