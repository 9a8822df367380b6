"""Tells a refusal of the API server from an outage, and a refusal that can end from one that cannot."""

from __future__ import annotations

import re
from dataclasses import dataclass

from finetune_operator.contract.bounded import clean_text
from finetune_operator.errors import ApiError

QUOTA = "Quota"
"""Kind of a refusal for a quota: what it refuses to one object, it refuses to every similar one."""
_WEBHOOK_UNREACHABLE = "failed calling webhook"
_POLICY = re.compile(r"denied (the )?request")
"""Texts of the API server about webhooks and ValidatingAdmissionPolicies, whatever the status code is."""
_NAMES = re.compile(
    r"\"[^\"]*\"|'[^']*'|[0-9]+[A-Za-z]*|[-a-z0-9]*-(prepare|train|merge)-[0-9]+|[-a-z0-9.]+-workspace"
)
_MAXIMUM_KIND = 160
_MAXIMUM_MESSAGE = 4096
"""The API server repeats values and lists every fault, in megabytes. A condition has room for this much."""


@dataclass(frozen=True)
class Refusal:
    """A request that the API server has answered with no."""

    kind: str
    """Equal for refusals of different objects that probably have the same cause."""
    message: str
    final: bool
    """True if the object itself is invalid, so that asking again is of no use."""


def refusal_of(error: ApiError) -> Refusal | None:
    """The refusal that `error` reports; None for an outage, a conflict, an expired token or a missing object.

    A quota, a policy and an unreachable webhook can change, so their refusals can end. An object that is malformed or
    invalid (400, 404, 422) stays so. A response that is no Status object comes from a proxy, and it decides nothing.
    """
    waits = _POLICY.search(error.message) is not None or error.missing_namespace
    message = clean_text(error.message[:_MAXIMUM_MESSAGE])
    if is_webhook_failure(error):
        return Refusal("Webhook/" + _normalized(message), message, final=False)
    if error.status == 403:
        kind = QUOTA if "exceeded quota" in message else _normalized(message)
        return Refusal(kind, message, final=False)
    if error.status not in {400, 404, 405, 413, 422} or not error.reason:
        return None
    return Refusal(_normalized(message), message, final=not waits)


def is_webhook_failure(error: ApiError) -> bool:
    """True if an admission webhook could not be asked. The API server itself works."""
    return error.status >= 500 and _WEBHOOK_UNREACHABLE in error.message


def _normalized(message: str) -> str:
    """`message` without names and numbers, which differ between objects."""
    return _NAMES.sub("#", message)[:_MAXIMUM_KIND]
