"""Hostile FineTuneJobs by seed, sent to a real API server with a running operator, and judged."""
