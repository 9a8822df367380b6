"""Rendered conversations to labels, proven row by row."""
