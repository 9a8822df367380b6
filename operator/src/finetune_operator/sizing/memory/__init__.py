"""Estimates the GPU memory of a training run, term by term."""
