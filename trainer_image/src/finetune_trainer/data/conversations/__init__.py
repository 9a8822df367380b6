"""Turns rows of any known format into checked conversations."""
