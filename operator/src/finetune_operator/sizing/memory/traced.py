"""Estimates the GPU memory of a run from the trace of the trainer's own step, whatever the model's family.

The trace has the peaks of some ways to run a step. Between two traced sizes, a peak lies on or below the straight line, because
it is the largest of several sums that grow evenly with the rows, and faster with the length. So the line is never too low.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from finetune_operator.sizing.memory.calibration import NO_CALIBRATION
from finetune_operator.sizing.memory.estimate import calibrated, completed
from finetune_operator.sizing.memory.sharing import Gathered
from finetune_operator.sizing.memory.terms import Estimate, MemoryItem, NotTracedError, Phase, Term, allocated

if TYPE_CHECKING:
    from finetune_operator.contract.memory_trace import MemoryTrace
    from finetune_operator.sizing.gpus.gpu import Gpu
    from finetune_operator.sizing.memory.calibration import Calibration
    from finetune_operator.sizing.memory.stack import StackProfile
    from finetune_operator.sizing.memory.training_plan import TrainingPlan

LARGEST_DIFFERENCE = 0.03
"""Share of the traced peak by which the closed form may differ without a warning."""
_PHASES = (Phase.LOAD, Phase.LOSS, Phase.RECOMPUTE, Phase.OPTIMIZER, Phase.EVALUATION)
_KIB = 1024
_VECTORS = "norms and other parameters"
_NESTED, _WEIGHTS_OF_NESTED = 4, 64 * 256
"""Bytes of a constant of the second level of NF4, and the weights that share it. It stays whole on every rank."""
_TABLES = sum(map(allocated, (16 * 4, 256 * 4, 4)))
"""Bytes of the tables of both levels of NF4 and of the offset, which each matrix of an expert has by itself."""
_WIDTH = 2
"""Bytes of a dequantized weight."""

Peaks = tuple[int, ...]
"""Bytes at the peak of each of `_PHASES`, without the optimizer's states."""


def traced_estimate(
    trace: MemoryTrace,
    plan: TrainingPlan,
    stack: StackProfile,
    calibration: Calibration = NO_CALIBRATION,
    gpu: Gpu | None = None,
) -> Estimate:
    """Estimate the memory of one run in bytes.

    Raises NotTracedError if the trace says nothing about such a plan.

    The trace has the adapter of the spec. A smaller rank saves weights and states, and no other change of the adapter
    counts, so such an estimate is rather too high. Gradients are among the temporary tensors but for the optimizer's phase.
    Of shared weights, it takes the largest sum of what is gathered in a phase and of its temporary tensors, which may be
    those of different moments.
    """
    found = _peaks(trace, plan)
    if found is None or plan.rank > trace.rank:
        raise NotTracedError(
            f"a plan must be one that PREPARE has traced, with rows of at most {trace.length} tokens and rank "
            f"{trace.rank} at most, found {plan}"
        )
    adapter = -(-trace.adapted.bytes * plan.rank // trace.rank)
    states = -(-_states(trace, plan.optimizer) * plan.rank // trace.rank)
    if plan.parallelism == "FullyShard" and trace.sharing is None:
        raise NotTracedError("a model that ranks share must have groups that a rank can gather, found none")
    whole = sum(item.bytes for item in _weights(trace, plan))
    weights = tuple(_own(trace, plan))
    terms: list[Term] = []
    for phase, peak in zip(_PHASES, found, strict=True):
        items = [*weights, MemoryItem("adapter", adapter, f"rank {plan.rank}")]
        rest = peak - whole - trace.adapted.bytes
        if phase is not Phase.LOAD:
            items.append(MemoryItem("optimizer states", states, plan.optimizer))
        if plan.ranks > 1 and phase in {Phase.LOSS, Phase.RECOMPUTE}:
            # In the optimizer's phase, the gradients are views of them.
            items.append(MemoryItem("gradient buckets", allocated(adapter), f"for {plan.ranks} ranks"))
        if phase is Phase.OPTIMIZER:
            items.append(MemoryItem("gradients", adapter, "as large as the adapter"))
            rest -= trace.adapted.bytes
        tokens = f"{plan.micro_batch_size} x {plan.sequence_length} tokens, traced"
        size = max(0, round(rest * calibration.activation_factor))
        items.append(MemoryItem("activations and temporary tensors", size, tokens))
        items += _gathered(trace, plan, phase)
        terms += [item.during(phase) for item in items if item.bytes]
    return completed(terms, calibrated(stack, calibration), calibration, gpu)


def difference(closed: Estimate, traced: Estimate) -> float:
    """Return by which share of the traced peak the closed form's peak differs, of memory that both see."""
    return closed.visible_peak_bytes / traced.visible_peak_bytes - 1


def _weights(trace: MemoryTrace, plan: TrainingPlan) -> Iterator[MemoryItem]:
    if plan.weights == "Dequantized":
        size = _WIDTH * trace.quantized.parameters
        yield MemoryItem("dequantized weights", size, f"{trace.quantized.parameters:,} x {_WIDTH} B")
    else:
        yield MemoryItem(
            "quantized weights", trace.quantized.bytes, f"{trace.quantized.modules:,} matrices in NF4"
        )
    for name, group in (
        ("experts in NF4", trace.experts),
        ("embeddings and output head", trace.embeddings),
        (_VECTORS, trace.other),
    ):
        if group is not None:
            yield MemoryItem(name, group.bytes, f"{group.parameters:,} parameters")


def _own(trace: MemoryTrace, plan: TrainingPlan) -> Iterator[MemoryItem]:
    """Yield the weights that a rank keeps: all of a replica, and else its part of all but the vectors."""
    for item in _weights(trace, plan):
        if plan.parallelism == "DataParallel" or item.name == _VECTORS:
            yield item
        else:
            yield MemoryItem(item.name, -(-item.bytes // plan.ranks), f"1/{plan.ranks} of {item.formula}")
    if plan.parallelism == "FullyShard":
        groups = [group for group in (trace.quantized, trace.experts) if group is not None]
        size = sum(_NESTED * -(-group.parameters // _WEIGHTS_OF_NESTED) for group in groups)
        # A model has thousands of experts, and few other matrices.
        size += 0 if trace.experts is None else _TABLES * trace.experts.modules
        yield MemoryItem("whole constants", size, f"{_NESTED} B for {_WEIGHTS_OF_NESTED:,} weights")


def _gathered(trace: MemoryTrace, plan: TrainingPlan, phase: Phase) -> Iterator[MemoryItem]:
    """Yield the most that a rank gathers in a phase."""
    groups = trace.sharing
    if plan.parallelism == "DataParallel" or groups is None:
        return
    layer = groups.dequantized_layer_bytes if plan.weights == "Dequantized" else groups.layer_bytes
    moments = Gathered(
        layer, groups.embedding_bytes, groups.head_bytes, tied=groups.head_bytes == 0, layers=groups.layers
    )
    found: tuple[MemoryItem, ...] = ()
    if phase is Phase.LOSS:
        found = (moments.beginning, moments.running, moments.at_head, moments.projecting)
    elif phase is Phase.RECOMPUTE:
        found = (moments.last_backward,)
    elif phase is Phase.EVALUATION:
        found = (moments.answering, moments.running, moments.at_head)
    if found:
        yield max(found, key=lambda item: item.bytes)


def _states(trace: MemoryTrace, optimizer: str) -> int:
    """Return the bytes of an optimizer's states. Paged states count, because a step uses them on the device."""
    known = trace.optimizers.get(optimizer.removeprefix("Paged"))
    return max(trace.optimizers.values()) if known is None else known


def _peaks(trace: MemoryTrace, plan: TrainingPlan) -> Peaks | None:
    """Return the peaks of a plan, from the traced ways with the same form of weights and activations."""
    form = (int(plan.gradient_checkpointing), int(plan.weights == "Dequantized"))
    rows = sorted((row[0], _bytes(row[3:])) for row in trace.rungs if (row[1], row[2]) == form)
    if not rows or plan.sequence_length > trace.length:
        return None
    frugal = form == (1, 0) and plan.micro_batch_size == 1
    if frugal and plan.sequence_length < trace.length:
        return _of_length(trace, plan.sequence_length, rows)
    return _of_rows(trace, plan.micro_batch_size, rows, accumulates=plan.gradient_accumulation > 1)


def _of_length(trace: MemoryTrace, length: int, rows: Sequence[tuple[int, Peaks]]) -> Peaks:
    """Return the peaks of one shorter row."""
    longest = [(trace.length, peaks) for count, peaks in rows if count == 1]
    points = sorted([*((row[0], _bytes(row[1:])) for row in trace.lengths), *longest])
    return _between(points, length)


def _of_rows(
    trace: MemoryTrace, count: int, rows: Sequence[tuple[int, Peaks]], *, accumulates: bool
) -> Peaks:
    exact = next((peaks for size, peaks in rows if size == count), None)
    if exact is not None:
        return exact
    largest, peaks = rows[-1]
    if count > largest:
        # Weights do not grow with the rows, so this is more than the run takes.
        return tuple(-(-size * count // largest) for size in peaks)
    found = _between(rows, count)
    # The whole batch in one pass has no gradients of an earlier pass, which the line between would ignore.
    added = allocated(trace.adapted.bytes) if accumulates else 0
    return tuple(size + added for size in found)


def _between(points: Sequence[tuple[int, Peaks]], place: int) -> Peaks:
    """Return the values at `place` on the straight line between its neighbors; the first point's if all lie above."""
    above = next((index for index, point in enumerate(points) if point[0] >= place), len(points) - 1)
    high, top = points[above]
    if above == 0 or high == place:
        return top
    low, bottom = points[above - 1]
    return tuple(
        one - (one - other) * (high - place) // (high - low) for one, other in zip(top, bottom, strict=True)
    )


def _bytes(sizes: Sequence[int]) -> Peaks:
    return tuple(size * _KIB for size in sizes)
