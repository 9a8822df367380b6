"""A small Python client for FineTuneJobs: submit, wait, follow and fetch. It stands on the package `kubernetes`."""

from finetune_client.client import ArtifactError, Client, JobFailedError

__all__ = ["ArtifactError", "Client", "JobFailedError"]
