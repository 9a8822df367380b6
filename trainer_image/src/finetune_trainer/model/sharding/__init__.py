"""A model whose frozen weights are shared out to ranks: PyTorch's FSDP2 gathers one layer at a time, and frees it again."""
