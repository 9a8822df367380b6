"""Builds the dataset on disk: proves rows in parallel, splits and counts them, writes Arrow tables."""
