"""A token bucket that limits the operator's requests to the API server, and is fair to every namespace.

In a namespace, what starts a job goes before what records or follows one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

RESERVE = 0.2
"""Share of the burst that is kept for flows with few requests, so that these never wait for a busy one."""
RAMP_SECONDS = 10.0
"""Time in which the rate grows to its full value after an outage."""
FIRST_RATE = 0.1
"""Share of the rate at the start of that ramp."""


PATIENCE = 5.0
"""Seconds after which a waiting call is overdue, even if others of its flow start a job."""
TURNS = 4
"""Calls that start a job and go before an overdue one."""


@dataclass(frozen=True)
class _Call:
    """A call that waits."""

    passed: asyncio.Future[None]
    since: float


@dataclass
class _Flow:
    """The requests of one namespace."""

    credit: float
    """Requests for which the flow may use the reserve."""
    updated: float
    starts: deque[_Call] = field(default_factory=deque)
    """Calls that start a job."""
    others: deque[_Call] = field(default_factory=deque)
    turns: int = 0
    """Calls that went before an overdue one since the last of these."""

    @property
    def waits(self) -> bool:
        """True if a call waits."""
        return bool(self.starts or self.others)

    def forget_canceled(self) -> None:
        """Drop the calls at both heads that nobody waits for any more."""
        for calls in (self.starts, self.others):
            while calls and calls[0].passed.done():
                calls.popleft()

    def take(self, now: float) -> _Call:
        """Remove and return the next call. One must wait."""
        overdue = bool(self.others) and now - self.others[0].since >= PATIENCE
        if self.starts and not (overdue and self.turns >= TURNS):
            self.turns = self.turns + 1 if overdue else 0
            return self.starts.popleft()
        self.turns = 0
        return self.others.popleft()


class TokenBucket:
    """Allows `rate` calls per second and up to `burst` at once.

    Callers of one flow proceed in order, but those that start a job first, and flows take turns. A flow with few calls
    passes before a busy one.
    """

    def __init__(self, rate: float, burst: int, clock: Callable[[], float]) -> None:
        """`clock` is monotonic, in seconds."""
        self._rate = rate
        self._burst = float(burst)
        self._reserve = float(int(burst * RESERVE))
        self._clock = clock
        self._tokens = float(burst)
        self._updated = clock()
        self._ramp_start: float | None = None
        self._flows: dict[str, _Flow] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def acquire(self, flow: str = "", *, starts: bool = False) -> None:
        """Wait for one token. `flow` names the callers that share a turn, for example a namespace.

        A call that `starts` a job goes before the others of its flow, unless one of these has waited for long.
        """
        found = self._flow(flow)
        if not found.waits and self._may_take(found):
            self._take(found)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        (found.starts if starts else found.others).append(_Call(future, self._clock()))
        self._wake()
        await future

    def restart(self) -> None:
        """Begin again with few calls, because the API server has just come back. The rate then grows to its full value."""
        self._refill()
        self._tokens = min(self._tokens, 1.0)
        self._ramp_start = self._clock()

    def pause(self, seconds: float) -> None:
        """Let nobody pass for `seconds`, because the API server asks for it."""
        self._refill()
        self._tokens = min(self._tokens, 1.0 - seconds * self._rate)

    def _flow(self, name: str) -> _Flow:
        now = self._clock()
        found = self._flows.get(name)
        if found is None:
            if len(self._flows) >= 1024:
                # A flow that is idle has its full credit soon, so nothing is lost with it.
                self._flows = {key: flow for key, flow in self._flows.items() if flow.waits}
            found = self._flows[name] = _Flow(self._reserve, now)
        found.credit = min(self._reserve, found.credit + (now - found.updated) * self._rate * RESERVE)
        found.updated = now
        return found

    def _refill(self) -> None:
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._updated) * self._current_rate(now))
        self._updated = now

    def _current_rate(self, now: float) -> float:
        if self._ramp_start is None:
            return self._rate
        share = (now - self._ramp_start) / RAMP_SECONDS
        if share >= 1:
            self._ramp_start = None
            return self._rate
        return self._rate * max(share, FIRST_RATE)

    def _threshold(self, flow: _Flow) -> float:
        """The tokens that must be there before `flow` may take one."""
        return 1.0 if flow.credit >= 1 else 1.0 + self._reserve

    def _may_take(self, flow: _Flow) -> bool:
        self._refill()
        # A float sum of refills may end just below a whole number.
        return self._tokens + 1e-9 >= self._threshold(flow)

    def _take(self, flow: _Flow) -> None:
        self._tokens -= 1
        flow.credit = max(0.0, flow.credit - 1)

    def _pump(self) -> None:
        """Let the waiting callers pass for whom there is a token, those of the least busy flows first."""
        self._timer = None
        progress = True
        while progress:
            progress = False
            for name in sorted(self._waiting_flows(), key=lambda name: self._threshold(self._flow(name))):
                flow = self._flow(name)
                flow.forget_canceled()
                if not flow.waits or not self._may_take(flow):
                    continue
                self._take(flow)
                flow.take(self._clock()).passed.set_result(None)
                # The next turn of this flow comes after those of all others.
                self._flows[name] = self._flows.pop(name)
                progress = True
        self._wake()

    def _waiting_flows(self) -> list[str]:
        return [name for name, flow in self._flows.items() if flow.waits]

    def _wake(self) -> None:
        """Set the timer for the time at which the next caller may pass."""
        waiting = self._waiting_flows()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not waiting:
            return
        self._refill()
        least = min(self._threshold(self._flow(name)) for name in waiting)
        delay = max(least - self._tokens, 0.0) / self._current_rate(self._clock())
        self._timer = asyncio.get_running_loop().call_later(max(delay, 0.001), self._pump)
