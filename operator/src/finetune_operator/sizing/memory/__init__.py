"""How much GPU memory a training run needs, term by term."""
