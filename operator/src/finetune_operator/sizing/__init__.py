"""Decides whether a job fits a GPU, and what to change if it does not."""
