"""The trainer: one image with the stages prepare, train and merge."""
