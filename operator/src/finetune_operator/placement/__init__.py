"""Placement of volumes and pods: storage topology and node constraints."""
