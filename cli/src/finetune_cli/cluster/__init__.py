"""Requests to a cluster through kubectl, and what they say of FineTuneJobs and pods."""
