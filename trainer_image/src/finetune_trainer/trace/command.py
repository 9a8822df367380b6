"""The command `trace`: a request on standard input, the memory profile of its model on standard output."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from pydantic import ValidationError

from finetune_trainer.contract.memory_trace import MemoryTrace, ModuleGroup, TraceAnswer, TraceRequest
from finetune_trainer.contract.run_spec import Optimizer, RunSpec
from finetune_trainer.trace.census import Group
from finetune_trainer.trace.profile import Peaks, Tracer
from finetune_trainer.trace.ways import Way, shorter, ways

if TYPE_CHECKING:
    from finetune_trainer.trace.census import Census

SECONDS = 90.0
"""Time after which no other way is tried. With imports and the last way, a trace takes at most two minutes."""
OPTIMIZERS: tuple[Optimizer, ...] = ("AdamW", "AdamW8Bit")
"""A paged optimizer keeps as much as the one that is not."""
_PLANNED: Optimizer = "AdamW8Bit"
_LONGEST_PROBLEM = 512
_KIB = 1024


def answer(source: TextIO, target: TextIO) -> bool:
    """Read a TraceRequest, and write a TraceAnswer as one line. Return whether it has a trace."""
    try:
        request = TraceRequest.model_validate_json(source.read())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "(top)"
        found = TraceAnswer(problem=f"request member `{where}`: {first['msg']}"[:_LONGEST_PROBLEM])
    else:
        found = traced(request)
    target.write(json.dumps(found.document(), separators=(",", ":")) + "\n")
    target.flush()
    return found.trace is not None


def traced(request: TraceRequest, now: Callable[[], float] = time.monotonic) -> TraceAnswer:
    """Trace a model, or say why it cannot be traced. `now` tells the time in seconds.

    A model whose layers depend on each other cannot run with a few of them. All of its layers run then.
    """
    end = now() + SECONDS
    problem = ""
    for whole in (False, True):
        try:
            with warnings.catch_warnings():
                # transformers and bitsandbytes warn about matters that do not affect a run on fake tensors.
                warnings.simplefilter("ignore")
                return TraceAnswer(trace=_trace(request, end, now, whole=whole))
        except Exception as error:  # noqa: BLE001 -- any code of transformers may run here, and none may end a stage
            problem = f"{type(error).__name__}: {error}"
        if now() >= end:
            break
    return TraceAnswer(problem=problem[:_LONGEST_PROBLEM])


def _trace(request: TraceRequest, end: float, now: Callable[[], float], *, whole: bool) -> MemoryTrace:
    training = request.training
    # The functions of TRAIN read nothing else of a run spec, and a trace has nothing else.
    run = RunSpec.model_construct(device="cuda", training=training)  # type: ignore[call-arg]
    tracer = Tracer(request.config, run, whole=whole)
    with tracer.tracing():
        first, *others = ways(training, request.length)
        rungs = {first: tracer.peaks(first, _PLANNED)}
        lengths: dict[Way, Peaks] = {}
        for way in (*others[:1], *shorter(training, request.length), *others[1:]):
            if now() >= end:
                break
            (rungs if way.length == request.length else lengths)[way] = tracer.peaks(way, _PLANNED)
        states = {optimizer: tracer.optimizer_states(optimizer) for optimizer in OPTIMIZERS}
        adapter, parameters = tracer.adapter_bytes(), tracer.adapter_parameters()
    return MemoryTrace(
        length=request.length,
        rank=training.lora.rank,
        adapted=ModuleGroup(modules=tracer.census.adapted, parameters=parameters, bytes=adapter),
        optimizers=dict(states),
        rungs=tuple(_rung(way, peaks) for way, peaks in rungs.items()),
        **_groups(tracer.census),
        **(
            {"lengths": tuple((way.length, *_kib(peaks)) for way, peaks in lengths.items())}
            if lengths
            else {}
        ),
        **({} if tracer.sharing is None else {"sharing": tracer.sharing}),
    )


def _groups(census: Census) -> dict[str, ModuleGroup]:
    return {
        kind.lower(): ModuleGroup(modules=group.modules, parameters=group.parameters, bytes=group.bytes)
        # All matrices of a model may be packed.
        for kind, group in {"Quantized": Group(), **census.groups}.items()
    }


def _rung(way: Way, peaks: Peaks) -> tuple[int, int, int, int, int, int, int, int]:
    return way.rows, int(way.checkpointing), int(way.weights == "Dequantized"), *_kib(peaks)


def _kib(peaks: Peaks) -> tuple[int, int, int, int, int]:
    """Return the peaks of a way in KiB, rounded up."""
    load, loss, recompute, optimizer, evaluation = (
        -(-size // _KIB)
        for size in (peaks.load, peaks.loss, peaks.recompute, peaks.optimizer, peaks.evaluation)
    )
    return load, loss, recompute, optimizer, evaluation
