"""FineTuneJobs that have ended are read after all others, and slowly.

Most FineTuneJobs of a cluster have ended. Nothing is to be decided about them, so a start need not wait for them.
"""

from __future__ import annotations

from finetune_operator.errors import ApiError

UNFINISHED = "status.completionTime="
"""Selects the FineTuneJobs that have not ended. A field that is absent is empty."""
ENDED = "status.completionTime!="
"""Selects those that have."""
SHARE = 0.5
"""Share of the time for lists that no job waits for. The API server and the operator work for each page."""


def cannot_select(error: ApiError) -> bool:
    """True if the API server does not know these selectors, because the CRD in the cluster is older than the operator."""
    return error.status == 400 and "field label not supported" in error.message
