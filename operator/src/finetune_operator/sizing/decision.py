"""Decides whether a job fits a GPU, with which plan and on which GPUs, and otherwise what would have to change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from finetune_operator.api.plan import ONE_GPU, Choice, Layout
from finetune_operator.api.quantities import binary_size
from finetune_operator.sizing import refusal
from finetune_operator.sizing.changes import Change, smallest_change
from finetune_operator.sizing.explanation import explain
from finetune_operator.sizing.gpus.gpu import Gpu, Offer
from finetune_operator.sizing.gpus.offers import eligible
from finetune_operator.sizing.gpus.products import PRODUCTS
from finetune_operator.sizing.ladder import (
    Rung,
)
from finetune_operator.sizing.layout import choose_layout, layout_choices, too_few, unsuitable
from finetune_operator.sizing.memory.estimate import estimate
from finetune_operator.sizing.memory.terms import Estimate
from finetune_operator.sizing.memory.traced import LARGEST_DIFFERENCE, difference, traced_estimate
from finetune_operator.sizing.memory.training_plan import TrainingPlan
from finetune_operator.sizing.parallelism import (
    layouts,
    more_gpus,
    more_gpus_remedy,
    not_shareable,
    parallelism_choices,
    sharing_obstacle,
)
from finetune_operator.sizing.request import SizingRequest
from finetune_operator.sizing.support import unsupported

Reason = Literal["DoesNotFit", "GpuNotSupported", "GpuMemoryUnknown", "UnsupportedModel"]


@dataclass(frozen=True)
class Feasible:
    """The job fits. TRAIN runs with `plan`, and `choices` give the reasons.

    `gpu` is the smallest GPU that fits, and `estimate` is the job's memory there. `offers` is every offer where the
    plan fits as well as on `gpu`: with the estimate's margin, or without it if `borderline` is set. `borderline` means
    that no plan fits any GPU with the margin. `frugal` has the plans that need less memory than `plan`, in the order of
    the ladder. `layout` divides the GPUs into pods.
    """

    plan: TrainingPlan
    choices: tuple[Choice, ...]
    estimate: Estimate
    gpu: Gpu
    offers: tuple[Offer, ...]
    borderline: bool = False
    frugal: tuple[TrainingPlan, ...] = ()
    layout: Layout = ONE_GPU


@dataclass(frozen=True)
class Infeasible:
    """The job fits no GPU that the cluster has or can start.

    `plan` is the plan that needs the least memory. `estimate` is its memory on `gpu`, the largest GPU that the job may
    use, or None if no such GPU is known. `change` is the smallest change that makes the job fit there. `smallest` is
    the smallest product on which the job fits unchanged.
    """

    reason: Reason
    message: str
    estimate: Estimate
    plan: TrainingPlan
    gpu: Gpu | None = None
    change: Change | None = None
    smallest: Gpu | None = None


def decide_training(
    request: SizingRequest,
    offers: Sequence[Offer],
    others: Callable[[], Sequence[Offer]] = tuple,
    *,
    brief: bool = False,
) -> Feasible | Infeasible:
    """Choose the plan and the GPUs of a job, or reject the job.

    `others` returns the offers of other GPU resources, which only a rejection names. A `brief` rejection has no remedy for
    too little memory, because finding one takes longer than the decision.

    Raises NotTracedError if neither a shape nor a trace tells the memory of any plan.

    The plan is the fastest one that the smallest sufficient GPU runs with margin: small GPUs are the cheapest and the
    most common. A GPU that is cordoned, not ready or still starting counts, because the job can wait for it.
    """
    resources, stack = request.spec.resources, request.stack
    rules = request.node_rules
    layout = choose_layout(resources, [offer for offer in offers if eligible(offer, rules) is None])
    training = request.spec.training
    obstacle = sharing_obstacle(training, request.shape, request.trace)
    ways = tuple(
        replace(request, layout=each)
        for each in layouts(training, layout, obstacle, known=request.trainer.shares_weights)
    )
    if not ways:
        rung = request.frugal(None)
        message = not_shareable(obstacle or "it is unknown")
        return Infeasible("UnsupportedModel", message, rung.estimate, rung.plan)
    request = ways[-1]
    if not offers:
        found = others()
        message = refusal.no_offer(resources.gpu_resource_name, found, _other_fit(request, found))
        return _without_gpu(request, "DoesNotFit", message)
    reasons = [(offer, eligible(offer, rules) or unsuitable(offer, layout)) for offer in offers]
    admitted = [offer for offer, why in reasons if why is None]
    if not admitted:
        excluded = [(offer, why) for offer, why in reasons if why is not None]
        message = refusal.not_eligible(resources.gpu_resource_name, excluded)
        return _without_gpu(request, "DoesNotFit", message)
    checked = [(offer, unsupported(offer.gpu, stack)) for offer in admitted]
    supported = sorted((offer for offer, why in checked if why is None), key=_size)
    not_supported = [(offer, why) for offer, why in checked if why is not None]
    if not supported:
        best = max(not_supported, key=lambda pair: _size(pair[0]))
        return _without_gpu(request, "GpuNotSupported", refusal.not_supported(best), best[0].gpu)
    known = [offer for offer in supported if offer.gpu.usable_bytes is not None]
    feasible = _smallest_fit(ways, known)
    if feasible is not None:
        return _placed(feasible)
    shares = obstacle is None and request.trainer.shares_weights and training.parallelism != "DataParallel"
    more = admitted if shares else ()
    return _no_fit(request, supported, not_supported, others, more, brief=brief)


def _no_fit(
    request: SizingRequest,
    supported: Sequence[Offer],
    not_supported: Sequence[tuple[Offer, str]],
    others: Callable[[], Sequence[Offer]],
    shared: Sequence[Offer],
    *,
    brief: bool,
) -> Infeasible:
    """Reject a job that fits no GPU of known size. More GPUs of `shared` may share its weights."""
    known = [offer for offer in supported if offer.gpu.usable_bytes is not None]
    unknown = [offer for offer in supported if offer.gpu.usable_bytes is None]
    if unknown:
        rung = request.frugal(unknown[0].gpu)
        message = refusal.memory_unknown(rung, unknown, known[-1] if known else None)
        return Infeasible(
            "GpuMemoryUnknown", message, rung.estimate, rung.plan, known[-1].gpu if known else None
        )
    if brief:
        rung = request.frugal(known[-1].gpu)
        return Infeasible("DoesNotFit", refusal.requirement(rung), rung.estimate, rung.plan, known[-1].gpu)
    return _too_large(request, known[-1], not_supported, _other_fit(request, others()), shared)


def cross_check(request: SizingRequest, decision: Feasible | Infeasible) -> str | None:
    """Return a warning if the closed form and the trace differ about the plan; None if there are not both."""
    if request.shape is None or request.trace is None or decision.plan.parallelism == "FullyShard":
        # Of shared weights, the trace gives a bound only.
        return None
    closed = estimate(request.shape, decision.plan, request.stack)
    traced = traced_estimate(request.trace, decision.plan, request.stack)
    share = difference(closed, traced)
    if abs(share) <= LARGEST_DIFFERENCE:
        return None
    return (
        f"the memory of {request.shape.family} must be the same by formula and by trace up to {LARGEST_DIFFERENCE:.0%}, found "
        f"{binary_size(closed.visible_peak_bytes)} and {binary_size(traced.visible_peak_bytes)} ({share:+.1%}); the trace "
        "decides, and the difference is worth a report to this project"
    )


def smallest_product(request: SizingRequest) -> Gpu | None:
    """Return the smallest product on which the job fits unchanged and the trainer image runs.

    A product that fits with the estimate's margin comes before any product that fits without it.
    """
    found: Gpu | None = None
    for gpu in PRODUCTS:
        if gpu.usable_bytes is None or unsupported(gpu, request.stack) is not None:
            continue
        rung = request.frugal(gpu)
        if rung.fits_with_margin(gpu.usable_bytes):
            return gpu
        if found is None and rung.fits(gpu.usable_bytes):
            found = gpu
    return found


def _smallest_fit(ways: Sequence[SizingRequest], known: Sequence[Offer]) -> Feasible | None:
    """Return the plan for the smallest of `known` that fits, with margin before without; `known` is sorted by size.

    `ways` are the request with each way to share the model. An earlier one comes first, but not without margin.
    """
    tried: list[tuple[SizingRequest, Gpu, tuple[Rung, ...]]] = []
    replica: tuple[Rung, Gpu] | None = None
    for request in ways:
        kinds = set()
        for offer in known:
            gpu = offer.gpu
            kind = (gpu.usable_bytes, gpu.compute_capability)
            if kind in kinds:
                continue
            kinds.add(kind)
            ladder = request.ladder(gpu)
            tried.append((request, gpu, ladder))
            for index, rung in enumerate(ladder):
                if rung.fits_with_margin(_size(offer)):
                    found = _feasible(request, known, gpu, ladder, index, borderline=False)
                    return _explained(request, found, replica)
            replica = ladder[-1], gpu
    for request, gpu, ladder in tried:
        if ladder[-1].fits(gpu.usable_bytes or 0):
            found = _feasible(request, known, gpu, ladder, len(ladder) - 1, borderline=True)
            return _explained(request, found, replica)
    return None


def _explained(request: SizingRequest, found: Feasible, replica: tuple[Rung, Gpu] | None) -> Feasible:
    """Return what fits with the reason for its parallelism. `replica` is the rung that did not fit the largest GPU."""
    rung, gpu = replica or (None, found.gpu)
    chosen = Rung(found.plan, found.estimate)
    choices = parallelism_choices(request.spec.training, found.layout, chosen, rung, gpu)
    return replace(found, choices=(*found.choices, *choices))


def _placed(feasible: Feasible) -> Feasible | Infeasible:
    """Return what fits, unless the pods of several nodes have no place."""
    missing = too_few(feasible.offers, feasible.layout)
    if missing is None:
        return feasible
    return Infeasible("DoesNotFit", missing, feasible.estimate, feasible.plan, feasible.gpu)


def _feasible(
    request: SizingRequest,
    known: Sequence[Offer],
    gpu: Gpu,
    ladder: tuple[Rung, ...],
    index: int,
    *,
    borderline: bool,
) -> Feasible:
    plan = ladder[index].plan
    estimates: dict[object, Estimate] = {}
    fitting = []
    for offer in known:
        capability = offer.gpu.compute_capability
        if capability not in estimates:
            estimates[capability] = request.estimator(offer.gpu)(plan)
        there = estimates[capability]
        if (there.device_bytes if borderline else there.high_bytes) <= _size(offer):
            fitting.append(offer)
    length_reason = (
        "the shortest length that a spec allows, because the data is not known yet"
        if request.sequence_length is None
        else request.length_reason
    )
    choices = explain(
        request.spec,
        ladder,
        index,
        gpu,
        borderline=borderline,
        length_reason=length_reason,
        device=request.device,
        abilities=request.abilities,
    )
    if request.device == "cpu" and request.spec.training.gradient_checkpointing == "Auto":
        plan = replace(plan, gradient_checkpointing=False)
    # On a CPU, the planned rung keeps activations, so that of the ladder itself is one that needs less.
    frugal = tuple(rung.plan for rung in ladder[index:] if rung.plan != plan)
    choices = (*choices, *layout_choices(request.spec.resources, request.layout))
    return Feasible(
        plan, choices, ladder[index].estimate, gpu, tuple(fitting), borderline, frugal, request.layout
    )


def _without_gpu(request: SizingRequest, reason: Reason, found: str, gpu: Gpu | None = None) -> Infeasible:
    """Reject a job that no GPU can run, whatever its size; `found` says why, `gpu` is the best of them."""
    rung, smallest = request.frugal(gpu), smallest_product(request)
    message = refusal.bounded([found, refusal.requirement(rung), refusal.smallest_gpu(smallest)])
    return Infeasible(reason, message, rung.estimate, rung.plan, gpu, smallest=smallest)


def _other_fit(request: SizingRequest, others: Sequence[Offer]) -> Offer | None:
    """Return the smallest GPU of another resource on which the unchanged job fits and which it may use."""
    rules = request.node_rules
    usable = [
        offer
        for offer in others
        if offer.gpu.usable_bytes is not None
        and eligible(offer, rules) is None
        and unsupported(offer.gpu, request.stack) is None
    ]
    return next(
        (
            offer
            for offer in sorted(usable, key=_size)
            if request.frugal(offer.gpu).fits_with_margin(_size(offer))
        ),
        None,
    )


def _too_large(
    request: SizingRequest,
    largest: Offer,
    not_supported: Sequence[tuple[Offer, str]],
    other: Offer | None,
    offers: Sequence[Offer],
) -> Infeasible:
    training, gpu = request.spec.training, largest.gpu
    rung, smallest = request.frugal(gpu), smallest_product(request)
    change = smallest_change(
        training,
        request.length,
        request.estimator(gpu),
        request.spec.resources.right_size,
        _size(largest),
        request.abilities,
        request.layout,
    )
    more = more_gpus(
        request.spec, offers, lambda layout: replace(request, layout=layout).frugal(gpu), _size(largest)
    )
    message = refusal.does_not_fit(
        rung,
        largest,
        change,
        smallest,
        not_supported,
        other,
        tuple(more_gpus_remedy(more, request.spec.resources.maximum_gpus)),
    )
    return Infeasible("DoesNotFit", message, rung.estimate, rung.plan, gpu, change, smallest)


def _size(offer: Offer) -> int:
    """Usable bytes; a GPU of unknown size counts as the smallest."""
    return offer.gpu.usable_bytes or 0
