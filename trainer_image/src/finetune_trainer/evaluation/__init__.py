"""Per-row losses of base and tuned model, and the verdict on their difference."""
