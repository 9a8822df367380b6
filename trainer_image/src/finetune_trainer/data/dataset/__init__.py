"""The dataset on disk: proving in parallel, splitting, counting and writing Arrow tables."""
