"""The workspace volume: layout, markers, digests and free space."""
