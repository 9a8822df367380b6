"""How each of several pods that train together ended, and which of them was the first to fail."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from finetune_operator.contract.bounded import MOST_RANKS
from finetune_operator.observed.observation import Pod

if TYPE_CHECKING:
    from finetune_operator.observed.outcomes import AttemptOutcome

_NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True)
class PodEnd:
    """The end of one of several pods, which did not succeed. What is not known is None, and an unknown node is empty."""

    index: int
    """Number of the pod, from 0 to 63."""
    node: str
    reason: str
    first: bool
    """True for the pod that failed first. The others only followed it."""
    exit_code: int | None = None
    rank: int | None = None
    """The rank of this pod that failed first, as its trainer reports it."""
    finished: datetime | None = None
    """End of its trainer, by the clock of its node."""


def precedence(pod: Pod, outcome: AttemptOutcome) -> tuple[bool, bool, bool, datetime, bool, int]:
    """A key that sorts the pod that failed first in front of those that only followed.

    A trainer that only lost the ranks of other pods says that it was interrupted. Among those that say so, a disrupted pod
    comes first, and then one that names a rank of its own. The clocks of nodes decide the rest, to the second.
    """
    interrupted = outcome.outcome == "Interrupted"
    unnamed = outcome.result is None or outcome.result.rank is None
    return (
        interrupted,
        not pod.disrupted,
        interrupted and unnamed,
        outcome.finished or _NEVER,
        unnamed,
        pod.index,
    )


def pod_ends(known: Iterable[tuple[Pod, AttemptOutcome]]) -> tuple[PodEnd, ...]:
    """The ends of pods that did not succeed, at most 64. The first of `known` failed first.

    Anybody may change the annotation with a pod's number, so a number that no rank can have tells nothing.
    """
    failed = [(pod, outcome) for pod, outcome in known if outcome.outcome != "Succeeded"]
    return tuple(
        PodEnd(
            index=pod.index,
            node=pod.node,
            reason=outcome.reason,
            first=place == 0,
            exit_code=outcome.exit_code,
            rank=None if outcome.result is None else outcome.result.rank,
            finished=outcome.finished,
        )
        for place, (pod, outcome) in enumerate(failed[:MOST_RANKS])
        if pod.index < MOST_RANKS
    )
