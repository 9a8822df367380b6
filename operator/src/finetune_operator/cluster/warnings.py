"""Reads why pods do not start, from their Events: a volume that cannot be mounted shows nowhere else."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from finetune_operator.cluster.resources import Cluster
from finetune_operator.contract.bounded import clean_text
from finetune_operator.errors import ApiError
from finetune_operator.observed.observation import Observation

MAXIMUM_LENGTH = 512

_logger = logging.getLogger(__name__)


async def read_pod_warnings(cluster: Cluster, observation: Observation) -> dict[str, str]:
    """The newest warning of each pod that has a node but does not run, by uid.

    Without the permission to list Events, or during an outage, there are none: the pod is still taken back.
    """
    found = {}
    for pod in observation.pods:
        if not pod.starting:
            continue
        try:
            events = await cluster.read_warnings(observation.job.namespace, pod.uid)
        except ApiError as error:
            _logger.warning("events of pod %s/%s: %s", observation.job.namespace, pod.name, error)
            continue
        warning = newest_warning(events)
        if warning:
            found[pod.uid] = warning
    return found


def newest_warning(events: Iterable[Mapping[str, Any]]) -> str:
    """Reason and message of the newest Event; empty without Events."""
    newest = max(events, key=_time, default=None)
    if newest is None:
        return ""
    return clean_text(f"{newest.get('reason', '')}: {newest.get('message', '')}")[:MAXIMUM_LENGTH]


def _time(event: Mapping[str, Any]) -> str:
    """The last time of an Event. Both forms of Events, and all precisions, sort as text within a second."""
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    return max(str(time or "") for time in times)
