"""Decides which pod is asked for its progress next. Pure: the shell asks, and reports how it went.

Namespaces take turns, and each may use a part of the slots. So a tenant with many pods that nobody can reach delays no
other one. Such a pod is asked rarely, until it answers or changes.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum

SLOTS = 64
"""Pods that are asked at one time."""
NAMESPACE_SLOTS = 16
"""Slots that one namespace may use."""
PROVEN_SLOTS = 16
"""Slots for pods whose last answer was good. No pod that hangs can take them twice."""
QUICK_TRIES = 12
"""Rounds in which a pod may refuse connections without delay, because its trainer is still starting."""
FIRST_DELAY = 10.0
LONGEST_DELAY = 600.0


class Outcome(Enum):
    """The end of one poll of one pod."""

    ANSWERED = "answered"
    """The trainer sent its progress."""
    CLOSED = "closed"
    """No port has a trainer, and this was known at once."""
    SILENT = "silent"
    """A port said nothing until the time limit."""


@dataclass(frozen=True)
class Target:
    """A pod that runs a trainer. `version` changes with the pod."""

    uid: str
    namespace: str
    version: str


@dataclass
class _Pod:
    """The history of one pod."""

    version: str
    due: float
    proven: bool = False
    """Its last poll was answered."""
    failures: int = 0


@dataclass
class _Turn:
    """The pods of one namespace that are to be asked in this round."""

    proven: deque[str] = field(default_factory=deque)
    others: deque[str] = field(default_factory=deque)


class PollSchedule:
    """The order of polls, in rounds of `period` seconds. A pod is asked at most once in a round."""

    def __init__(self, period: float, clock: Callable[[], float], draw: Callable[[], float]) -> None:
        """`clock` is monotonic, in seconds. `draw` returns numbers from 0 to 1, for jitter."""
        self._period = period
        self._clock = clock
        self._draw = draw
        self._pods: dict[str, _Pod] = {}
        self._turns: dict[str, _Turn] = {}
        self._served: dict[str, int] = {}
        """The number of the last turn of each namespace."""
        self._turn = 0
        self._asked: dict[str, str] = {}
        """The namespaces of the pods that are being asked, by uid."""
        self._used: Counter[str] = Counter()

    def begin_round(self, targets: Iterable[Target]) -> None:
        """Start a round with all pods that run a trainer now. Pods that were not asked in the last one come first."""
        now = self._clock()
        known = self._pods
        self._pods = {}
        due: list[tuple[float, Target]] = []
        served: dict[str, int] = {}
        for target in targets:
            served[target.namespace] = self._served.get(target.namespace, 0)
            pod = known.get(target.uid) or _Pod(target.version, now)
            if pod.version != target.version:
                pod.version, pod.failures, pod.due = target.version, 0, min(pod.due, now)
            self._pods[target.uid] = pod
            if pod.due <= now and target.uid not in self._asked:
                # A pod that has answered costs little, so it comes before others that have not waited longer for it.
                due.append((pod.due - self._period * pod.proven, target))
        due.sort(key=lambda item: item[0])
        self._turns = {}
        for _, target in due:
            turn = self._turns.setdefault(target.namespace, _Turn())
            (turn.proven if self._pods[target.uid].proven else turn.others).append(target.uid)
        self._served = served
        self._turns = dict(sorted(self._turns.items(), key=lambda item: served[item[0]]))

    @property
    def waiting(self) -> bool:
        """True while pods of this round have not been asked."""
        return bool(self._turns)

    def take(self) -> str | None:
        """The uid of the pod to ask now, which takes a slot; None if there is no pod or no slot for one."""
        free = SLOTS - len(self._asked)
        if free <= 0:
            return None
        for namespace, turn in self._turns.items():
            if self._used[namespace] >= NAMESPACE_SLOTS:
                continue
            uid = self._next_of(turn, only_proven=free <= PROVEN_SLOTS)
            if uid is None:
                continue
            del self._turns[namespace]
            if turn.proven or turn.others:
                # Its next turn comes after those of all others.
                self._turns[namespace] = turn
            self._turn += 1
            self._served[namespace] = self._turn
            self._asked[uid] = namespace
            self._used[namespace] += 1
            return uid
        return None

    def finish(self, uid: str, outcome: Outcome) -> None:
        """Record the end of a poll, which frees its slot."""
        self._used[self._asked.pop(uid)] -= 1
        self._used += Counter()
        pod = self._pods.get(uid)
        if pod is None:
            return
        now = self._clock()
        pod.proven = outcome is Outcome.ANSWERED
        pod.failures = 0 if pod.proven else pod.failures + 1
        pod.due = now + self._delay(pod.failures, outcome)

    def _next_of(self, turn: _Turn, *, only_proven: bool) -> str | None:
        if only_proven or not turn.others:
            return turn.proven.popleft() if turn.proven else None
        if not turn.proven:
            return turn.others.popleft()
        first, other = self._pods[turn.proven[0]], self._pods[turn.others[0]]
        return (turn.proven if first.due - self._period <= other.due else turn.others).popleft()

    def _delay(self, failures: int, outcome: Outcome) -> float:
        """Seconds until the next poll: 0 (the next round) after an answer, then 10 s, 20 s and so on, with jitter."""
        if outcome is Outcome.CLOSED:
            failures -= QUICK_TRIES
        if failures <= 0:
            return 0.0
        delay = min(FIRST_DELAY * 2.0 ** min(failures - 1, 10), LONGEST_DELAY)
        return delay * (0.75 + 0.5 * self._draw())
