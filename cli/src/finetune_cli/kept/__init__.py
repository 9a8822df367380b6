"""Reads what a job's claims keep after its pods are gone, through a short pod that prints it."""
