"""Keeps a shown message while only its numbers and random names change, because each change is a write of the status."""

from __future__ import annotations

import re

_PULL = re.compile(r"(pod \S+: (?:Init:)?)(?:ErrImagePull|ImagePullBackOff): ")
_POD = re.compile(r"(-(?:prepare|train|merge)-\d+)-[a-z0-9]{5}\b")
"""A pod's name after that of its Job. Each try to create a pod has another one."""
_HEX = re.compile(r"\b[0-9a-f]{32,}\b")
"""A container's or a sandbox's id. Each try has another one."""
_NUMBER = re.compile(r"(?<![\w.-])\d[\w.:]*(?![\w-])")
"""A number, with a unit, or an address. Numbers in names stay, because they tell objects apart."""


def form(message: str) -> str:
    """`message` without what differs between two tries with the same cause."""
    return _NUMBER.sub("#", _HEX.sub("#", _POD.sub(r"\1-#", message)))


def steady(shown: str, found: str) -> str:
    """The message to show instead of `shown`: `found`, unless both have the same cause.

    The kubelet alternates between two words for a failing pull, and only the name of the pod tells such messages apart.
    """
    before, now = _PULL.match(shown), _PULL.match(found)
    same_pull = before is not None and now is not None and before[1] == now[1]
    return shown if same_pull or form(shown) == form(found) else found
