"""A small Python client for FineTuneJobs: submit, wait, follow and fetch. It needs kubectl and no other package."""

from finetune_client.client import Client, JobFailedError
from finetune_client.kubectl import (
    ApiUnavailableError,
    ClusterError,
    ExistsError,
    ForbiddenError,
    Kubectl,
    NotFoundError,
    RejectedError,
)

__all__ = [
    "ApiUnavailableError",
    "Client",
    "ClusterError",
    "ExistsError",
    "ForbiddenError",
    "JobFailedError",
    "Kubectl",
    "NotFoundError",
    "RejectedError",
]
