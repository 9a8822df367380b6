"""Chooses how several GPUs share the model: a replica each while one fits, else a part of the frozen weights each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from finetune_operator.api.plan import Choice, Layout
from finetune_operator.api.quantities import binary_size
from finetune_operator.api.spec import MOST_GPUS, FineTuneJobSpec, Training
from finetune_operator.contract.memory_trace import MemoryTrace
from finetune_operator.sizing.gpus.gpu import Gpu, Offer
from finetune_operator.sizing.ladder import Rung
from finetune_operator.sizing.layout import places
from finetune_operator.sizing.memory.shape import ModelShape


def sharing_obstacle(training: Training, shape: ModelShape | None, trace: MemoryTrace | None) -> str | None:
    """Say why the frozen weights of a model cannot be shared out to GPUs; None if they can.

    A model of a known `shape` has layers that can be gathered one by one. Of another one, only the `trace` tells.
    """
    if training.lora.variant == "DoRA":
        return "DoRA needs whole weights"
    if shape is None and (trace is None or trace.sharing is None):
        return (
            "its layers cannot be gathered one by one, share weights or are rows of one 4-bit tensor, or an older trainer image "
            "cannot share its experts"
        )
    return None


def layouts(training: Training, layout: Layout, obstacle: str | None, *, known: bool) -> tuple[Layout, ...]:
    """Return the ways in which the GPUs of `layout` may share the model, the faster one first. The user's value is kept.

    `obstacle` says why they cannot share the weights; nothing is left if the user asks for it then. The trainer is `known` to
    share them. If it is not, it gets such a run only if the user asks for it, and then an older one refuses the run spec.
    """
    if layout.gpus == 1:
        return (layout,)
    asked = training.parallelism
    replicas = () if asked == "FullyShard" else (replace(layout, parallelism="DataParallel"),)
    if asked == "DataParallel" or obstacle is not None or not (known or asked == "FullyShard"):
        return replicas
    return (*replicas, replace(layout, parallelism="FullyShard"))


def not_shareable(obstacle: str) -> str:
    """Return the message for a job that asks for a way to share the model that this model does not allow."""
    return (
        f"training.parallelism FullyShard needs a model whose weights GPUs can share, but {obstacle}. Create the job again "
        "with training.parallelism DataParallel."
    )


def parallelism_choices(
    training: Training, layout: Layout, rung: Rung, replica: Rung | None, gpu: Gpu
) -> tuple[Choice, ...]:
    """Return how the GPUs share the model with the reason; nothing for one GPU, or if the user gave it.

    `rung` is the chosen one, and `replica` the most frugal one of a replica that did not fit; `gpu` is the largest there.
    """
    if layout.gpus == 1 or training.parallelism is not None:
        return ()
    if layout.parallelism == "DataParallel" or replica is None:
        size = binary_size(rung.estimate.device_bytes)
        reason = f"a replica of the model fits each GPU with {size}, and replicas exchange only the gradients of the adapter"
    else:
        usable = gpu.usable_bytes or 0
        exceeds = replica.estimate.device_bytes > usable
        need = replica.estimate.device_bytes if exceeds else replica.estimate.high_bytes
        reason = (
            f"a replica {'needs' if exceeds else 'may need'} {binary_size(need)}, but {gpu.product} has "
            f"{binary_size(usable)}, so each of {layout.gpus} GPUs keeps a part of the frozen weights"
        )
    return (Choice("parallelism", layout.parallelism, reason),)


def more_gpus(
    spec: FineTuneJobSpec,
    offers: Sequence[Offer],
    frugal: Callable[[Layout], Rung],
    usable_bytes: int,
) -> tuple[int, Rung] | None:
    """Return the smallest number of GPUs, above that of the spec, on which the job fits with shared weights, and its rung.

    Only numbers that `offers` have a place for count. They are powers of two up to the rows of a step. `frugal` returns the
    most frugal rung of a layout, and `usable_bytes` is the memory of the largest GPU.
    """
    for gpus in _numbers(spec):
        if places((offer for offer in offers if offer.sharing == "None"), 1) < gpus:
            return None
        rung = frugal(Layout(1, gpus, "FullyShard"))
        if rung.fits_with_margin(usable_bytes):
            return gpus, rung
    return None


def more_gpus_remedy(found: tuple[int, Rung] | None, maximum: int | None = None) -> Iterable[str]:
    """Yield the sentence that names more GPUs, if these would help. `maximum` is that of the job, if it has one."""
    if found is not None:
        gpus, rung = found
        instead = "" if maximum is None else f" instead of maximumGpus: {maximum}"
        yield (
            f"With resources.gpus: {gpus}{instead}, GPUs share the weights, and the job needs "
            f"{binary_size(rung.estimate.device_bytes)} on each."
        )


def _numbers(spec: FineTuneJobSpec) -> Iterator[int]:
    gpus = 2
    while gpus <= min(MOST_GPUS, spec.training.effective_batch_size):
        if gpus > spec.resources.gpus:
            yield gpus
        gpus *= 2
