"""Proves with small random weights that a model's architecture trains and merges as this trainer takes for granted."""
