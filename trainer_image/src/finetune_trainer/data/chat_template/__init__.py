"""Renders and tokenizes conversations with the model's chat template."""
