"""Messages for jobs that fit no GPU; every figure comes from an estimate or from a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from finetune_operator.api.quantities import binary_size
from finetune_operator.sizing.changes import Change
from finetune_operator.sizing.gpus.gpu import Gpu, Offer
from finetune_operator.sizing.ladder import Rung
from finetune_operator.sizing.memory.terms import Phase
from finetune_operator.sizing.memory.training_plan import TrainingPlan

LONGEST_MESSAGE = 1000
"""Characters. A condition may hold more, but nobody reads more."""
_LONGEST_NAME = 80
_LONGEST_FORMULA = 120
_MOST_RESOURCES = 5
_MEMORY_REMEDY = (
    "Run NVIDIA's GPU feature discovery or AMD's Node Labeller. Or describe the nodes in the chart's gpuProfiles with "
    "product or memory."
)


def does_not_fit(
    rung: Rung,
    largest: Offer,
    change: Change | None,
    smallest: Gpu | None,
    excluded: Sequence[tuple[Offer, str]],
    other: Offer | None = None,
    more_gpus: Sequence[str] = (),
) -> str:
    """Return the message of a job whose most frugal `rung` fits no GPU; `largest` is the GPU with the most memory.

    `change` is the smallest change that fits `largest`. `smallest` is the smallest product on which the job fits
    unchanged. `excluded` are other GPUs, each with the reason why it does not count. `other` is the smallest GPU of
    another resource on which the job fits unchanged. `more_gpus` says which number of GPUs would do.
    """
    sentences = [
        f"{_place(rung.plan)} {requirement(rung)}",
        _shortage(largest, rung),
        remedy(change),
        *more_gpus,
        *_other_resource(other),
        smallest_gpu(smallest),
        *(f"Not considered: {_named(offer)}: {why}." for offer, why in excluded[:1]),
    ]
    return bounded(sentences)


def _place(plan: TrainingPlan) -> str:
    if plan.ranks == 1:
        return "The run must fit on one GPU."
    what = "A replica of the model" if plan.parallelism == "DataParallel" else "A part of the model"
    return f"{what} must fit on each of {plan.ranks} GPUs."


def no_offer(resource_name: str, others: Sequence[Offer] = (), fitting: Offer | None = None) -> str:
    """Return the message for a resource that no node and no GPU profile offers.

    `others` are offers of other GPU resources, such as MIG slices. `fitting` is the smallest of them that would do.
    """
    required = f"A node or an entry of the chart's gpuProfiles must offer {_short(resource_name)}, found "
    if not others:
        return f"{required}none. Install the GPU's device plugin, or describe the nodes in gpuProfiles."
    return " ".join([f"{required}only {_resources(others)}.", *_other_resource(fitting)])


def _resources(others: Sequence[Offer]) -> str:
    """Name each resource once, with its memory and the number of its nodes and GPU profiles."""
    sizes: dict[str, set[str]] = {}
    places: dict[str, set[str]] = {}
    for offer in others:
        usable = offer.gpu.usable_bytes
        size = "unknown size" if usable is None else binary_size(usable)
        sizes.setdefault(offer.resource_name, set()).add(size)
        place = f"node {offer.node}" if offer.node is not None else f"gpuProfiles {offer.profile}"
        places.setdefault(offer.resource_name, set()).add(_short(place))
    named = [
        f"{_short(name)} ({' or '.join(sorted(sizes[name])[:2])}, {_places(places[name])})"
        for name in sorted(sizes)
    ]
    more = f" and {len(named) - _MOST_RESOURCES} more" if len(named) > _MOST_RESOURCES else ""
    return ", ".join(named[:_MOST_RESOURCES]) + more


def _places(places: set[str]) -> str:
    return f"{len(places)} nodes" if len(places) > 1 else next(iter(places))


def _other_resource(offer: Offer | None) -> tuple[str, ...]:
    """Say which other resource the job fits on."""
    if offer is None or offer.gpu.usable_bytes is None:
        return ()
    size = binary_size(offer.gpu.usable_bytes)
    return (f"The job fits {_short(offer.resource_name)} with {size}: set resources.gpuResourceName to it.",)


def not_eligible(resource_name: str, excluded: Sequence[tuple[Offer, str]]) -> str:
    """Return the message for a job whose selector and tolerations, or the chart, exclude every GPU, each with a reason."""
    offer, why = excluded[0]
    return (
        f"The job must be allowed to use a GPU, but it may use none of the {len(excluded)} GPU nodes or profiles with "
        f"{_short(resource_name)}. {_named(offer)}: {why}."
    )


def not_supported(best: tuple[Offer, str]) -> str:
    """Return the message for a trainer image that runs on no GPU that the job may use."""
    offer, why = best
    return f"The trainer image must run on the GPU. {_named(offer)}: {why}."


def memory_unknown(rung: Rung, unknown: Sequence[Offer], largest: Offer | None) -> str:
    """Return the message for a job that may fit only GPUs whose memory is unknown."""
    offer = unknown[0]
    others = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
    known = (
        ""
        if largest is None or largest.gpu.usable_bytes is None
        else f" The largest GPU of known size, {_short(largest.gpu.product)}, offers {binary_size(largest.gpu.usable_bytes)}."
    )
    return bounded(
        [
            f"The memory of a GPU must be known, found no label with the memory of {_named(offer)}{others}.",
            requirement(rung) + known,
            _MEMORY_REMEDY,
        ]
    )


def requirement(rung: Rung) -> str:
    """Say how much memory a rung needs, with the largest term of its bottleneck phase."""
    estimate = rung.estimate
    largest = estimate.largest_terms()[0]
    formula = f": {largest.formula}" if len(largest.formula) <= _LONGEST_FORMULA else ""
    outside = estimate.device_bytes - estimate.peak_bytes
    return (
        f"With {plan_summary(rung.plan)}, the run needs {binary_size(estimate.device_bytes)}. Phase "
        f"{estimate.bottleneck.value} peaks at {binary_size(estimate.peak_bytes)}. Its largest part is {largest.name} "
        f"({binary_size(largest.bytes)}{formula}). CUDA and fragmentation add {binary_size(outside)}."
    )


def plan_summary(plan: TrainingPlan) -> str:
    """Describe a plan by the values that decide its memory."""
    variant = "DoRA" if plan.variant == "DoRA" else "LoRA"
    return (
        f"micro-batch {plan.micro_batch_size} x {plan.sequence_length:,} tokens, {variant} rank {plan.rank} on "
        f"{plan.target_modules}{' with dropout' if plan.dropout else ''} and gradient checkpointing "
        f"{'on' if plan.gradient_checkpointing else 'off'}"
    )


def remedy(change: Change | None) -> str:
    """Name the smallest change that fits, with its memory."""
    if change is None:
        return "No change of up to three settings makes it fit there."
    estimate = change.rung.estimate
    return (
        f"The smallest change that fits there is {change}. It needs {binary_size(estimate.device_bytes)} (at most "
        f"{binary_size(estimate.high_bytes)}){' and shortens the data' if change.shortens_data else ''}."
    )


def smallest_gpu(smallest: Gpu | None) -> str:
    """Name the smallest product on which the job fits unchanged."""
    if smallest is None or smallest.usable_bytes is None:
        return "The operator knows no single GPU that is large enough and that this image supports."
    return (
        f"The smallest GPU that fits the unchanged job is {_short(smallest.product)} with "
        f"{binary_size(smallest.usable_bytes)}."
    )


def _shortage(offer: Offer, rung: Rung) -> str:
    """Say how much memory the largest GPU lacks, and in which phase the run would fail."""
    available, estimate = offer.gpu.usable_bytes or 0, rung.estimate
    outside = estimate.device_bytes - estimate.peak_bytes
    first = next(phase for phase in Phase if estimate.phases.get(phase, 0) + outside > available)
    failure = (
        ""
        if first is estimate.bottleneck
        else f" The run would already fail in phase {first.value}, which needs {binary_size(estimate.phases[first])}."
    )
    return (
        f"The largest GPU here, {_named(offer)}, offers {binary_size(available)}, which is "
        f"{binary_size(estimate.device_bytes - available)} too little.{failure}"
    )


def _named(offer: Offer) -> str:
    """Return the product with its node or GPU profile; a GPU that a person names on the command line has neither."""
    place = (
        f" of node {_short(offer.node)}"
        if offer.node is not None
        else f" of GPU profile {_short(offer.profile)}"
        if offer.profile is not None
        else ""
    )
    return _short(offer.gpu.product) + place


def bounded(sentences: Iterable[str]) -> str:
    """Join as many whole sentences as the limit allows; if the first one alone exceeds it, it is cut."""
    text = ""
    for sentence in sentences:
        longer = f"{text} {sentence}".strip()
        if len(longer) > LONGEST_MESSAGE:
            return text or sentence[: LONGEST_MESSAGE - 1] + "…"
        text = longer
    return text


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
