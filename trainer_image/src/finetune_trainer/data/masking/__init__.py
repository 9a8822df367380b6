"""Turns rendered conversations into labels and proves them row by row."""
