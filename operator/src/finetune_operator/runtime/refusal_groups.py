"""Lets one member of a group ask for all: the refused actions of one namespace with the same cause.

A thousand jobs over one quota must not ask a thousand times. Members take turns as the prober, so that a small request
behind a large one is tried, too. After an admission, twice as many may ask as before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from finetune_operator.lifecycle.refusals import delay_after
from finetune_operator.observed.observation import Key

Member = tuple[Key, str]
"""A FineTuneJob and the key of its action."""
Times = dict[Member, datetime]
"""The members whose next try has changed, with its time."""

PATIENCE = timedelta(hours=2)
"""A member asks for itself after this time, in case that its prober is gone without a trace."""
MAXIMUM_PROBERS = 64


@dataclass
class _Group:
    message: str
    next_probe: datetime
    failures: int = 0
    probers: int = 1
    members: dict[Member, None] = field(default_factory=dict)

    def heads(self) -> list[Member]:
        """The members that ask next."""
        return [member for member, _ in zip(self.members, range(self.probers), strict=False)]


class RefusalGroups:
    """The groups of all namespaces."""

    def __init__(self, draw: Callable[[], float]) -> None:
        """`draw` returns random numbers from 0 to 1."""
        self._draw = draw
        self._groups: dict[tuple[str, str], _Group] = {}
        self._kind_of: dict[Member, str] = {}

    def refuse(self, member: Member, kind: str, message: str, now: datetime) -> Times:
        """Record that the API server has refused `member` for a cause of this `kind`."""
        times: Times = {}
        known = self._kind_of.get(member)
        if known is not None and known != kind:
            times = self.leave(member)
        group = self._groups.setdefault((member[0][0], kind), _Group(message, now))
        group.message = message
        if now >= group.next_probe:
            group.failures += 1
            group.probers = 1
            group.next_probe = now + delay_after(group.failures, self._draw())
        group.members.pop(member, None)
        group.members[member] = None
        self._kind_of[member] = kind
        times[member] = group.next_probe + PATIENCE
        return times | self._head_times(group)

    def defer(self, member: Member, kind: str, now: datetime) -> tuple[str, Times] | None:
        """Let `member` wait without asking if others of its namespace are refused for this kind.

        Returns the message of that refusal and the times of the next tries; None if the member may ask.
        """
        group = self._groups.get((member[0][0], kind))
        if group is None or now >= group.next_probe + PATIENCE:
            return None
        if now >= group.next_probe and member in group.heads():
            return None
        group.members.setdefault(member, None)
        self._kind_of[member] = kind
        return group.message, {member: group.next_probe + PATIENCE} | self._head_times(group)

    def admit(self, member: Member, now: datetime) -> Times:
        """Record that the API server has admitted `member`, so that the next ones of its group may ask."""
        group = self._group_of(member)
        if group is None:
            return {}
        group.failures = 0
        group.probers = min(group.probers * 2, MAXIMUM_PROBERS)
        group.next_probe = now
        return self.leave(member)

    def leave(self, member: Member) -> Times:
        """Take `member` out of its group, because it asks no more."""
        group = self._group_of(member)
        if group is None:
            return {}
        kind = self._kind_of.pop(member)
        del group.members[member]
        if not group.members:
            del self._groups[member[0][0], kind]
        return self._head_times(group)

    def leave_all(self, key: Key) -> Times:
        """Take every action of a FineTuneJob out of its group, because the job is gone."""
        times: Times = {}
        for member in [each for each in self._kind_of if each[0] == key]:
            times |= self.leave(member)
        return times

    def _group_of(self, member: Member) -> _Group | None:
        kind = self._kind_of.get(member)
        return None if kind is None else self._groups[member[0][0], kind]

    @staticmethod
    def _head_times(group: _Group) -> Times:
        return dict.fromkeys(group.heads(), group.next_probe)
