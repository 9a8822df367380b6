"""Recognizes the GPUs that the cluster's nodes offer, and builds the affinity by which a pod asks for them."""
