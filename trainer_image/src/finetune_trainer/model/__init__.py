"""The base model: its description, support, layout, loading and output head."""
