"""Divides the GPUs of a job into pods, each on one node."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from finetune_operator.api.plan import Choice, Layout
from finetune_operator.api.spec import FineTuneJobSpec, Resources
from finetune_operator.sizing.gpus.gpu import Offer
from finetune_operator.sizing.ladder import divisors


def choose_layout(resources: Resources, offers: Sequence[Offer]) -> Layout:
    """Choose the GPUs of each pod of TRAIN: those of the spec, or as many as one node of `offers` has.

    GPUs of one node reach each other fastest, so fewer pods are better. If the offers have no place for all pods of any
    size, the largest pods that have a place count: more nodes may join.
    """
    gpus, given = resources.gpus, resources.gpus_per_node
    if given is None and resources.maximum_gpus is not None:
        # Several nodes need a workspace that many cannot have, so the user must ask for them (ADR 0081).
        return Layout(1, gpus)
    if given is not None:
        return Layout(gpus // given, given)
    sizes = [size for size in divisors(gpus) if any(size <= offer.count for offer in offers)]
    enough = (size for size in sizes if places(offers, size) >= gpus // size)
    per_node = next(enough, sizes[0] if sizes else 1)
    return Layout(gpus // per_node, per_node)


def widest_layout(spec: FineTuneJobSpec, offers: Sequence[Offer]) -> Layout:
    """Return the layout with the most pods that the job may get, before it is sized: its volumes must suit it."""
    if spec.resources.maximum_gpus is None:
        return choose_layout(spec.resources, offers)
    return choose_layout(with_gpus(spec, allowed_numbers(spec)[-1]).resources, offers)


def with_gpus(spec: FineTuneJobSpec, gpus: int) -> FineTuneJobSpec:
    """Return `spec` with this number of GPUs, which its maximum allows."""
    return spec.model_copy(update={"resources": spec.resources.model_copy(update={"gpus": gpus})})


def allowed_numbers(spec: FineTuneJobSpec) -> tuple[int, ...]:
    """Return the numbers of GPUs that a spec with a maximum allows, the smallest first: whole pods, and a row for each GPU."""
    resources, training = spec.resources, spec.training
    pod, most = resources.gpus_per_node or 1, min(resources.maximum_gpus or 1, training.effective_batch_size)
    least = 2 if training.parallelism == "FullyShard" else 1
    first = -(-least // pod) * pod
    return (first, *range(first + pod, most + 1, pod))


def places(offers: Iterable[Offer], per_node: int) -> float:
    """Return the number of pods with `per_node` GPUs that have a place; infinity if an autoscaler can start nodes."""
    offers = tuple(offers)
    if any(offer.node is None and offer.count >= per_node for offer in offers):
        return float("inf")
    return sum(offer.count // per_node for offer in offers)


def unsuitable(offer: Offer, layout: Layout) -> str | None:
    """Say why a pod of this layout cannot use an offer; None if it can."""
    if layout.gpus == 1:
        return None
    if offer.sharing != "None":
        return f"its GPUs are shared ({offer.sharing}), and resources.gpus {layout.gpus} requires whole GPUs"
    if offer.count < layout.per_node:
        return f"it has {offer.count}, and each pod of TRAIN requests {layout.per_node}"
    return None


def too_few(offers: Sequence[Offer], layout: Layout) -> str | None:
    """Say that the pods of TRAIN have no place, even if no other job runs; None if they have."""
    found = places(offers, layout.per_node)
    if found >= layout.nodes or layout.gpus == 1:
        return None
    return (
        f"TRAIN needs a place for {layout.nodes} pods with {layout.per_node} GPUs each, but the nodes that it may use have "
        f"room for {found:.0f}. Add nodes, describe them in gpuProfiles, or create the job again with fewer resources.gpus."
    )


def layout_choices(resources: Resources, layout: Layout) -> tuple[Choice, ...]:
    """Return the chosen values of a job with several GPUs, each with its reason."""
    if layout.gpus == 1 or resources.gpus_per_node is not None:
        return ()
    if layout.nodes == 1:
        reason = "one node has all GPUs of the job, and they reach each other fastest"
    else:
        reason = (
            f"no node has all {layout.gpus} GPUs, so {layout.nodes} pods have {layout.per_node} each: "
            "as many as a node offers"
        )
    return (Choice("gpusPerNode", str(layout.per_node), reason),)
