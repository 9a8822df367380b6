"""The gradients of a step: those of this process alone, or the sum over all ranks, which PyTorch's DDP computes.

The loss of a pass is divided by the learned tokens of the whole step. So gradients and losses of ranks are added. Means over
ranks, which is what DDP does by itself, would weigh a token of a short share more than one of a long share.
"""

from __future__ import annotations

import hashlib
import signal
import time
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from finetune_trainer.stages.train.loss import Objective
from finetune_trainer.stages.train.ranks.usage import RankUsage
from finetune_trainer.termination import Terminated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from finetune_trainer.stages.train.passes import Pass, Step
    from finetune_trainer.stages.train.ranks.group import Ranks

    Parts = tuple[torch.Tensor, torch.Tensor | None]
    Measure = Callable[[Any, Pass], Parts]


class Gradients:
    """Those of a process that has all passes of a step."""

    rank_usage: tuple[RankUsage, ...] = ()
    """What each rank took for the steps before; only the first of several ranks knows it."""

    def __init__(self, measure: Measure | None = None) -> None:
        """`measure` returns the parts of the loss of a pass: `loss.Objective.parts`, by default without routers."""
        self._measure = measure or Objective().parts

    def begin(self, step: Step, number: int, stop: str | None) -> None:
        """Agree with the other ranks on the step `number`. `stop` names the signal that this process has received.

        Raises Terminated if a rank must stop, and RuntimeError if the ranks have drawn different rows.
        """

    def of_step(self, number: int) -> AbstractContextManager[None]:  # noqa: ARG002 -- for ranks
        """Return the context of the passes of a step."""
        return nullcontext()

    def of_pass(self, *, last: bool) -> AbstractContextManager[None]:  # noqa: ARG002 -- for ranks
        """Return the context of a pass, forward and backward. The gradients are complete after the last one."""
        return nullcontext()

    def parts(self, model: Any, one: Pass) -> Parts:
        """Return the parts of the loss of a pass."""
        return self._measure(model, one)

    def total(self, part: torch.Tensor) -> torch.Tensor:
        """Return a part of the loss of the whole step from that of this rank."""
        return part

    def close(self) -> None:
        """Leave the model as it was."""


class SharedGradients(Gradients):
    """Those of a step whose rows several ranks have: each has a replica of the model, and DDP adds their gradients."""

    def __init__(self, model: Any, ranks: Ranks, seed: int, measure: Measure | None = None) -> None:
        """Give the trained values of `model` those of the first rank. `seed` is that of the run."""
        super().__init__(measure)
        self._ranks = ranks
        self._seed = seed
        self._watch = _Stopwatch()
        module = _PassLoss(model, self._measure)
        # Frozen weights are the same files on every rank. DDP would send all of them.
        frozen = [name for name, value in module.named_parameters() if not value.requires_grad]
        frozen += [name for name, _ in module.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, frozen)  # noqa: SLF001 -- torch has no public name for it
        self._replica = DistributedDataParallel(
            module,
            forward_sync_buffers=False,
            # A pass may use only some of the experts.
            find_unused_parameters=True,
            gradient_as_bucket_view=True,
        )
        self._replica.register_comm_hook(self._watch, _add)

    def begin(self, step: Step, number: int, stop: str | None) -> None:
        """See the base class."""
        received = 0 if stop is None else int(signal.Signals[stop])
        own = RankUsage.read(self._watch.seconds())
        known = self._ranks.gather_numbers([received, step.digest, *own.numbers()])
        signals, digests, *_ = zip(*known, strict=True)
        # Nothing is measured before the first step of this process.
        if self._ranks.is_first and self._watch.has_run:
            self.rank_usage = tuple([RankUsage.of(numbers[2:]) for numbers in known])
        stopped = [rank for rank, received in enumerate(signals) if received]
        if stopped:
            name = signal.Signals(int(signals[stopped[0]])).name
            raise Terminated(name if len(stopped) == len(signals) else f"{name} of {_named(stopped)}")
        others = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
        if others:
            raise RuntimeError(
                f"all ranks must draw the same rows for step {number}, found others on {_named(others)}"
            )

    @contextmanager
    def of_step(self, number: int) -> Iterator[None]:
        """Let the passes draw random numbers of their own.

        The order of the rows is drawn from the same generators, which must stay equal on all ranks. So dropout differs
        between ranks, and between numbers of ranks.
        """
        devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(step_seed(self._seed, number, self._ranks.rank))
            self._watch.start()
            yield

    def of_pass(self, *, last: bool) -> AbstractContextManager[None]:
        """See the base class. The last pass sends the gradients of all."""
        return nullcontext() if last else self._replica.no_sync()

    def parts(self, model: Any, one: Pass) -> Parts:  # noqa: ARG002 -- DDP has the model
        """See the base class. DDP learns from this call which gradients to expect."""
        parts: Parts = self._replica(one)
        return parts

    def total(self, part: torch.Tensor) -> torch.Tensor:
        """See the base class."""
        distributed.all_reduce(part)
        return part

    def close(self) -> None:
        """See the base class."""
        self._replica._remove_autograd_hooks()  # noqa: SLF001 -- torch has no public name for it
        # The evaluation needs the memory of its buckets.
        del self._replica


class _PassLoss(torch.nn.Module):
    """The loss of a pass as a module, because DDP wraps one."""

    def __init__(self, model: Any, measure: Measure) -> None:
        super().__init__()
        self.model = model
        self._measure = measure

    def forward(self, one: Pass) -> Parts:
        return self._measure(self.model, one)


def _add(watch: _Stopwatch, bucket):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 -- DDP compares annotations with types, and here they are text
    """Add a bucket of gradients over all ranks, while the backward pass computes the next one."""
    if bucket.is_last():
        watch.stop()
    work: Any = distributed.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda done: done.value()[0])


class _Stopwatch:
    """The time that a rank's own passes take, without its wait for the others."""

    def __init__(self) -> None:
        self.has_run = False
        self._seconds = 0.0
        self._started = 0.0
        self._events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None

    def start(self) -> None:
        self.has_run = True
        self._started = time.monotonic()
        if torch.cuda.is_initialized():
            self._events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            self._events[0].record()

    def stop(self) -> None:
        self._seconds = time.monotonic() - self._started
        if self._events is not None:
            self._events[1].record()

    def seconds(self) -> float:
        """Return the time of the last step that is known. Nothing waits for the device."""
        if self._events is not None and self._events[1].query():
            self._seconds = self._events[0].elapsed_time(self._events[1]) / 1000
        return self._seconds


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of the random numbers that a rank draws in a step: 64 bits, different for each."""
    digest = hashlib.sha256(f"{seed}:{step}:{rank}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def _named(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
