"""The NF4 checkpoint: kernel, files, build and cache."""
