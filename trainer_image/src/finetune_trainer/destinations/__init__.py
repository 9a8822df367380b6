"""Copies published artifacts to the places that the job names: folders, object stores, hubs and registries."""
