"""Deterministic simulation of whole operators on virtual time (docs/adr/0045)."""
