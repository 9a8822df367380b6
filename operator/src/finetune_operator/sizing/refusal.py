"""What a job is told that fits no GPU: every figure comes from an estimate or from a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from finetune_operator.api.quantities import binary_size
from finetune_operator.sizing.changes import Change
from finetune_operator.sizing.gpus.gpu import Gpu, Offer
from finetune_operator.sizing.ladder import Rung
from finetune_operator.sizing.memory.terms import Phase
from finetune_operator.sizing.memory.training_plan import TrainingPlan

LONGEST_MESSAGE = 1000
"""Characters; conditions hold more, people do not."""
_LONGEST_NAME = 80
_LONGEST_FORMULA = 120
_HOW_TO_TELL = (
    "Run NVIDIA's GPU feature discovery or AMD's node labeller, which label nodes with product and memory, or give the "
    "nodes an entry with product or memory in the chart's gpuProfiles."
)


def does_not_fit(
    rung: Rung,
    biggest: Offer,
    change: Change | None,
    smallest: Gpu | None,
    left_out: Sequence[tuple[Offer, str]],
) -> str:
    """The message of a job whose most frugal `rung` fits no GPU; `biggest` is the one that offers the most.

    `change` is the smallest change that fits `biggest`, `smallest` the smallest product on which the job fits as it
    is, `left_out` says of other GPUs why they do not count.
    """
    sentences = [
        f"The run must fit one GPU. {needs(rung)}",
        _biggest(biggest, rung),
        remedy(change),
        product(smallest),
        *(f"Left out: {_named(offer)}: {why}." for offer, why in left_out[:1]),
    ]
    return bounded(sentences)


def no_offer(resource_name: str) -> str:
    """What is wrong where no node has, and no catalogue entry promises, the resource that the job asks for."""
    return f"A node or an entry of the chart's gpuProfiles must offer {_short(resource_name)}, found none."


def not_eligible(resource_name: str, excluded: Sequence[tuple[Offer, str]]) -> str:
    """What is wrong where the job's node selector, its tolerations and the chart leave no GPU; `excluded` says why of each."""
    offer, why = excluded[0]
    return (
        f"The job must be allowed on a GPU, found {_short(resource_name)} in {len(excluded)} places and none that "
        f"it may use: {_named(offer)}: {why}."
    )


def not_supported(best: tuple[Offer, str]) -> str:
    """What is wrong where the image runs on no GPU that the job may use."""
    offer, why = best
    return f"The trainer's image must run on the GPU: {_named(offer)}: {why}."


def memory_unknown(rung: Rung, unknown: Sequence[Offer], biggest: Offer | None) -> str:
    """The message where the job may fit only GPUs whose memory nothing tells."""
    offer = unknown[0]
    others = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
    known = (
        ""
        if biggest is None or biggest.gpu.usable_bytes is None
        else f" The biggest GPU of known size, {_short(biggest.gpu.product)}, offers {binary_size(biggest.gpu.usable_bytes)}."
    )
    return bounded(
        [
            f"The memory of a GPU must be known, found nothing that tells it of {_named(offer)}{others}.",
            needs(rung) + known,
            _HOW_TO_TELL,
        ]
    )


def needs(rung: Rung) -> str:
    """What was asked for and what it needs, with the largest term of the phase that decides."""
    estimate = rung.estimate
    largest = estimate.largest_terms()[0]
    formula = f": {largest.formula}" if len(largest.formula) <= _LONGEST_FORMULA else ""
    outside = estimate.device_bytes - estimate.peak_bytes
    return (
        f"{asked(rung.plan)} needs {binary_size(estimate.device_bytes)}: {binary_size(estimate.peak_bytes)} in phase "
        f"{estimate.bottleneck.value}, of which the largest part is {largest.name} ({binary_size(largest.bytes)}"
        f"{formula}), and {binary_size(outside)} beside the tensors."
    )


def asked(plan: TrainingPlan) -> str:
    """The values of a plan that decide its memory."""
    variant = "DoRA" if plan.variant == "DoRA" else "LoRA"
    return (
        f"Micro-batch {plan.micro_batch_size} x {plan.sequence_length:,} tokens, {variant} rank {plan.rank} on "
        f"{plan.target_modules}{' with dropout' if plan.dropout else ''}, gradient checkpointing "
        f"{'on' if plan.gradient_checkpointing else 'off'},"
    )


def remedy(change: Change | None) -> str:
    """The smallest change that fits, with its numbers."""
    if change is None:
        return "No change of up to three of its settings makes it fit there."
    estimate = change.rung.estimate
    return (
        f"The smallest change that fits there: {change}, with which it needs {binary_size(estimate.device_bytes)} (at "
        f"most {binary_size(estimate.high_bytes)}){' and the data is shortened' if change.shortens_data else ''}."
    )


def product(smallest: Gpu | None) -> str:
    """The smallest product that would do."""
    if smallest is None or smallest.usable_bytes is None:
        return "No single GPU that this image runs on is known to be large enough."
    return f"The smallest GPU that would do as it is: {_short(smallest.product)} with {binary_size(smallest.usable_bytes)}."


def _biggest(offer: Offer, rung: Rung) -> str:
    """How much the biggest GPU is too small, and where the run would end."""
    available, estimate = offer.gpu.usable_bytes or 0, rung.estimate
    outside = estimate.device_bytes - estimate.peak_bytes
    first = next(phase for phase in Phase if estimate.phases.get(phase, 0) + outside > available)
    ends = (
        ""
        if first is estimate.bottleneck
        else f" It would end as early as in phase {first.value}, with {binary_size(estimate.phases[first])}."
    )
    return (
        f"The biggest GPU here, {_named(offer)}, offers {binary_size(available)}: "
        f"{binary_size(estimate.device_bytes - available)} too little.{ends}"
    )


def _named(offer: Offer) -> str:
    """The GPU and where it is; one that a person names is nowhere."""
    place = (
        f" of node {_short(offer.node)}"
        if offer.node is not None
        else f" of GPU profile {_short(offer.profile)}"
        if offer.profile is not None
        else ""
    )
    return _short(offer.gpu.product) + place


def bounded(sentences: Iterable[str]) -> str:
    """As many whole sentences as fit the limit; the first is cut where it alone is longer."""
    text = ""
    for sentence in sentences:
        longer = f"{text} {sentence}".strip()
        if len(longer) > LONGEST_MESSAGE:
            return text or sentence[: LONGEST_MESSAGE - 1] + "…"
        text = longer
    return text


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
