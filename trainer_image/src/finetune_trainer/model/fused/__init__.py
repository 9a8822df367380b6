"""Fused kernels for a layer's small operations: which of them a run uses, their self-test, and their place in a model."""
