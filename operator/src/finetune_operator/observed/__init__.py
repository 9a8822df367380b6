"""The observation that a decision is based on, and the meaning of ended and pending attempts."""
