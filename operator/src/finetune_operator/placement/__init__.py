"""Where volumes and pods can be: storage topology and node constraints."""
