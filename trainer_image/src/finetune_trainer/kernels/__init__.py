"""Compiled Numba kernels: how they are shipped with the image and warmed up."""
