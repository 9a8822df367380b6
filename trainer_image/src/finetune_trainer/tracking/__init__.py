"""A record of the finished run in the trackers that the run spec names. A tracker never fails or holds a run."""
