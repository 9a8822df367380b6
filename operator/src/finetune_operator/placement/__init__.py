"""Where volumes and pods may be: storage topology and node constraints."""
