"""The child objects that the operator creates: Jobs and claims."""
