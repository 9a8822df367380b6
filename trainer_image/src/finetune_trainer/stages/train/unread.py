"""Loss and gradient norm of finished steps, read when the device has computed them, and at most one step late.

Reading a number makes the host wait until the device has done everything before it. Then the device is idle until the
host has queued the next step.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable


class HostCopy:
    """A copy of a small tensor on its way to the host. Only `read` waits for it."""

    def __init__(self, values: torch.Tensor) -> None:
        self._values = values.to("cpu", non_blocking=True)
        self._event: torch.cuda.Event | None = None
        if values.is_cuda:
            self._event = torch.cuda.Event()
            self._event.record()

    @property
    def arrived(self) -> bool:
        """Whether `read` returns at once."""
        return self._event is None or self._event.query()

    def read(self) -> list[float]:
        """Return the values; wait for the device if they have not arrived."""
        if self._event is not None:
            self._event.synchronize()
        found: list[float] = self._values.tolist()
        return found


@dataclass(frozen=True)
class FinishedStep:
    """What is known of a step when it is queued, and its loss and gradient norm, which the device still computes.

    `numbers` may have the load-balancing loss of its routers as the third one.

    `epoch` is the progress after the step, and `learning_rate` that of its update. `examples`, `tokens` and `computed`
    count its rows, its tokens, and its tokens with padding.
    """

    step: int
    epoch: float
    learning_rate: float
    examples: int
    tokens: int
    computed: int
    numbers: HostCopy

    def entry(self) -> dict[str, Any]:
        """Return the entry of the training's history; wait for the device."""
        loss, norm, *balance = self.numbers.read()
        return {
            "loss": loss,
            "grad_norm": norm,
            **({"routerAuxLoss": balance[0]} if balance else {}),
            "learning_rate": self.learning_rate,
            "examples": self.examples,
            "tokens": self.tokens,
            "computedTokens": self.computed,
            "epoch": self.epoch,
            "step": self.step,
        }


class UnreadSteps:
    """The finished steps that `report` has not got yet. It gets each one once, in order, and may raise."""

    def __init__(self, report: Callable[[dict[str, Any]], None]) -> None:
        self._report = report
        self._steps: deque[FinishedStep] = deque()

    def add(self, step: FinishedStep) -> None:
        """Add a step whose work is queued. Report those before it, and this one if its numbers have arrived."""
        self._steps.append(step)
        while len(self._steps) > 1 or (self._steps and self._steps[0].numbers.arrived):
            self._next()

    def report_all(self) -> None:
        """Report every step; wait for the device."""
        while self._steps:
            self._next()

    def forget(self) -> None:
        """Drop all steps."""
        self._steps.clear()

    def _next(self) -> None:
        self._report(self._steps.popleft().entry())
