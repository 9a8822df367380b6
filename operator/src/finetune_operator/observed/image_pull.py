"""How long the kubelet pulled an image for a pod, which it tells in an Event only."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import timedelta

from finetune_operator.observed.observation import Pod
from finetune_operator.observed.warnings import EventRecord

SHORT = timedelta(seconds=3)
"""A pod that started within this time had its image. Its Events are not read."""
LONGEST = 86400.0
"""Seconds of the longest pull that counts: who may write Events may write any number."""
_PULLED = re.compile(
    r'Successfully pulled image "([^"]*)" in (\S+?)(?: \((\S+) including waiting\))?\.?(?=\s|$)'
)
_PRESENT = re.compile(r'Container image "([^"]*)" already present on machine')
_PART = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s|us|µs|μs|ns)")
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9}


def took_time(pod: Pod) -> bool:
    """True if so much time passed between the pod's node and its trainer that an image may have been pulled."""
    if pod.started is None or pod.scheduled is None:
        return False
    return pod.started - pod.scheduled >= SHORT


def pull_seconds(events: Iterable[EventRecord], image: str) -> float | None:
    """Seconds for which containers of one pod waited for `image`; 0 if the node had it, None if no Event tells.

    The time includes the wait for other pulls, because the pod waits, too.
    """
    told = [
        found for event in events if event.reason == "Pulled" and (found := _told(event, image)) is not None
    ]
    return min(sum(told), LONGEST) if told else None


def _told(event: EventRecord, image: str) -> float | None:
    present = _PRESENT.search(event.message)
    if present is not None:
        return 0.0 if present[1] == image else None
    pulled = _PULLED.search(event.message)
    return None if pulled is None or pulled[1] != image else _duration(pulled[3] or pulled[2])


def _duration(text: str) -> float | None:
    """Seconds of a duration as Go prints it, such as 1m3.2s; None if it is none."""
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return sum(min(float(number), LONGEST * 1e9) * _SECONDS[unit] for number, unit in parts)
