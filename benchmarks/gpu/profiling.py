"""A profile of one training step: how long the device was idle, which kernels ran, and which lines waited for it."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

from benchmarks.gpu.training import synchronize

_MOST = 12
_WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal")
"""Operators whose result the host must know before it goes on."""
_LIBRARIES = ("/torch/", "/benchmarks/gpu/", "/contextlib.py")


def busy_seconds(intervals: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of intervals (begin, end)."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


class SyncCounter(TorchDispatchMode):
    """Counts operators for which the host waits for the device, by the line that called them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no annotations here
        self.callers: Counter[str] = Counter()
        self._stack = ExitStack()

    def __enter__(self) -> Any:
        for owner in (torch.cuda, torch.cuda.Event):
            self._stack.enter_context(patch.object(owner, "synchronize", self._counted(owner.synchronize)))
        return super().__enter__()  # type: ignore[no-untyped-call]  # torch has no annotations here

    def __exit__(self, *details: object) -> None:
        self._stack.close()
        super().__exit__(*details)  # type: ignore[no-untyped-call]  # same

    def _counted(self, synchronize: Callable[..., None]) -> Callable[..., None]:
        def counted(*arguments: Any, **settings: Any) -> None:
            self.callers[f"synchronize {caller(traceback.extract_stack())}"] += 1
            synchronize(*arguments, **settings)

        return counted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if waits(func, args, kwargs or {}, made):
            self.callers[f"{func.overloadpacket.__name__} {caller(traceback.extract_stack())}"] += 1
        return made


def waits(operator: Any, arguments: Sequence[Any], settings: Mapping[str, Any], made: Any) -> bool:
    """Return whether the host must wait for the device: for a value, for a size, or for a copy to its own memory."""
    if operator.overloadpacket.__name__ in _WAITING:
        return True
    if settings.get("non_blocking"):
        return False
    source = next((each for each in arguments if isinstance(each, torch.Tensor)), None)
    return (
        source is not None and source.is_cuda and isinstance(made, torch.Tensor) and made.device.type == "cpu"
    )


def caller(stack: Sequence[traceback.FrameSummary]) -> str:
    """Return file and line of the last frame outside of torch and of this benchmark."""
    for frame in reversed(stack):
        if not any(part in frame.filename for part in _LIBRARIES):
            return f"{'/'.join(frame.filename.split('/')[-2:])}:{frame.lineno}"
    return "unknown"


class StepProfile(TrainerCallback):
    """Profiles the step number `profiled`, and counts waits in the step `counted`; the first step is 0."""

    def __init__(self, device: str, *, profiled: int, counted: int) -> None:
        self._device = device
        self._profiled = profiled
        self._counted = counted
        self._profile: Any = None
        self._watching: Any = None
        self._syncs = SyncCounter()
        self._started = 0.0
        self._seconds = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 -- the base class's signature
        """End what watches the step before, with its log, and begin to watch."""
        self._end()
        if state.global_step == self._profiled:
            activities = [ProfilerActivity.CPU]
            if self._device == "cuda":
                activities.append(ProfilerActivity.CUDA)
            synchronize(self._device)
            self._profile = profile(activities=activities, acc_events=True)
            self._watching = self._profile
            self._watching.__enter__()
            self._started = time.perf_counter()
        elif state.global_step == self._counted:
            self._watching = self._syncs
            self._watching.__enter__()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 -- the base class's signature
        """End what watches the last step."""
        self._end()

    def _end(self) -> None:
        if self._watching is None:
            return
        if self._watching is self._profile:
            synchronize(self._device)
            self._seconds = time.perf_counter() - self._started
        self._watching.__exit__(None, None, None)
        self._watching = None

    def values(self) -> dict[str, Any]:
        """Return the idle share, the kernels with the most time, and the waits by caller."""
        events = [event for event in self._profile.events() if event.device_type.name == self._device.upper()]
        busy = busy_seconds((event.time_range.start / 1e6, event.time_range.end / 1e6) for event in events)
        kernels: Counter[str] = Counter()
        for event in events:
            kernels[event.name[:100]] += event.time_range.elapsed_us() / 1e6
        return {
            "seconds": self._seconds,
            "busySeconds": busy,
            "idleShare": max(0.0, 1 - busy / self._seconds),
            "kernels": dict(kernels.most_common(_MOST)),
            "syncs": dict(self._syncs.callers.most_common(_MOST)),
            "syncsPerStep": sum(self._syncs.callers.values()),
        }
