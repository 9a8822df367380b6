"""Which GPUs the cluster's nodes offer, and how a pod asks for them."""
