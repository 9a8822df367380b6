"""The model's chat template: rendering and tokenizing conversations."""
