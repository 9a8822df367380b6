"""Time and price of a run on a GPU, before it starts."""
