"""TRAIN: masked QLoRA on a GPU."""
