"""What one decision sees of the cluster, and what ended or pending attempts mean."""
