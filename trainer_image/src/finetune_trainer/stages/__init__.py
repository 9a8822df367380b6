"""The three stages: prepare, train and merge."""
