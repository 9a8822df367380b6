"""The only two steps that hold credentials of destinations: they are tried before TRAIN, and filled after MERGE."""
