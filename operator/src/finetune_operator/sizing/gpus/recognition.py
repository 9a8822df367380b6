"""Turns the evidence about a node's GPUs into one `Gpu`: its size, its capabilities and how a pod selects it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from finetune_operator.api.quantities import MIB
from finetune_operator.sizing.gpus.gpu import Gpu, Sharing, Vendor, Version
from finetune_operator.sizing.gpus.node_labels import Evidence, number, read_evidence
from finetune_operator.sizing.gpus.nodes import NodeRecord
from finetune_operator.sizing.gpus.products import (
    USABLE_PER_MILLE,
    Match,
    match_product,
    mig_memory_mib,
    product_gpu,
    split_mig,
    usable_of_label,
    usable_of_product,
)
from finetune_operator.sizing.gpus.profiles import vendor_of_resource

ADVERTISED_PER_MILLE = 930
"""Share of an advertised memory that a process gets: EC2 lists 16384 MiB for a T4, which has 15360 and gives 14909."""
_SAME_CARD = (0.92, 1.10)
"""A measured total outside these shares of the product's belongs to another card: a vGPU, a partition of an MI300X, a
card with other memory chips. Within these shares, labels differ by driver and ECC."""


@dataclass(frozen=True)
class RecognizedGpu:
    """One node's GPU with the sets of labels that name it, the most trusted first."""

    gpu: Gpu
    selector_labels: tuple[Mapping[str, str], ...]
    sharing: Sharing
    replicas: int
    has_evidence: bool
    """True if anything but the allocatable resources shows that this node has a GPU."""
    exclusion_reason: str | None = None


def label_prefix(resource_name: str) -> str:
    """Return the start of GFD's labels for a resource; a shared resource has the labels of the whole GPU."""
    base = resource_name.removesuffix(".shared")
    return base if base.startswith("nvidia.com/mig-") else "nvidia.com/gpu"


def recognize(node: NodeRecord, resource_name: str) -> RecognizedGpu:
    """Recognize the GPU that a node offers under `resource_name`."""
    prefix = label_prefix(resource_name)
    evidence, sized = _evidence(node, prefix, vendor_of_resource(resource_name))
    first = next(
        ((item, gpu) for item, gpu in sized if gpu is not None and gpu.usable_bytes is not None), None
    )
    mig_profile = prefix.removeprefix("nvidia.com/mig-") if prefix.startswith("nvidia.com/mig-") else None
    if first is None or (mig_profile is not None and first[0].origin != f"{prefix}.product"):
        gpu, selector_labels = _unknown(evidence, resource_name, mig_profile), _own_labels(evidence)
    else:
        gpu = first[1] or _unknown(evidence, resource_name, mig_profile)
        if first[0].mixed:
            selector_labels = ()
        else:
            selector_labels = tuple(
                item.labels
                for item, other in sized
                if item.labels
                and other is not None
                and (
                    item is first[0] or (other.product == gpu.product and "instance-type" not in item.origin)
                )
            )
        gpu = _with_smaller_card(gpu, sized)
    sharing, replicas = _sharing(node, prefix, resource_name, gpu)
    if sharing == "Mps":
        gpu = _mps_share(gpu, replicas)
    capability, driver = _capability(node, prefix), _driver_cuda(node)
    return RecognizedGpu(
        gpu=replace(gpu, compute_capability=capability or gpu.compute_capability, driver_cuda=driver),
        selector_labels=selector_labels,
        sharing=sharing,
        replicas=replicas,
        has_evidence=bool(evidence),
        exclusion_reason=_mig_exclusion(node, prefix),
    )


def _evidence(
    node: NodeRecord, prefix: str, vendor: Vendor
) -> tuple[list[Evidence], list[tuple[Evidence, Gpu | None]]]:
    """Return the evidence about GPUs of `vendor`, each with its GPU; a node may have GPUs of other vendors too."""
    found = read_evidence(node, prefix)
    sized = [(item, _size(item, found[index + 1 :])) for index, item in enumerate(found)]
    if vendor != "Unknown":
        sized = [
            (item, gpu)
            for item, gpu in sized
            if (gpu.vendor if gpu is not None else item.vendor) in {None, "Unknown", vendor}
        ]
    return [item for item, _ in sized], sized


def _mps_share(gpu: Gpu, clients: int) -> Gpu:
    """Return the equal share of one MPS client; its size is unknown if the number of clients is."""
    if gpu.usable_bytes is None:
        return gpu
    if clients < 2:
        return replace(gpu, usable_bytes=None, source="no label has the number of its MPS clients")
    return replace(
        gpu,
        usable_bytes=gpu.usable_bytes // clients,
        source=f"{gpu.source}, divided by {clients} MPS clients",
    )


def _size(item: Evidence, later: Sequence[Evidence]) -> Gpu | None:
    """Return the GPU of one labeler; None if it has neither name nor memory."""
    base, mig_profile = split_mig(item.name)
    match = match_product(base, _hint(item, later) if mig_profile is None else None)
    if mig_profile is not None:
        return _slice(item, match, mig_profile)
    if match is None:
        if item.memory_mib is None:
            return None
        usable = usable_of_label(item.memory_mib)
        if not item.measured:
            usable = item.memory_mib * MIB * ADVERTISED_PER_MILLE // 1000
        name = item.name or "GPU"
        return Gpu(name, item.vendor or "Unknown", usable, source=f"memory of {item.origin}")
    gpu = product_gpu(match)
    note = f": {match.note}" if match.note else ""
    source = f"product of {item.origin}{note}"
    if item.measured and item.memory_mib is not None:
        low, high = _SAME_CARD
        if not low <= item.memory_mib / match.product.label_mib <= high:
            return replace(
                gpu, usable_bytes=usable_of_label(item.memory_mib), source=f"memory of {item.origin}"
            )
        limit = item.memory_mib * MIB
        return replace(gpu, usable_bytes=min(usable_of_product(match.product), limit), source=source)
    return replace(gpu, source=source)


def _slice(item: Evidence, match: Match | None, mig_profile: str) -> Gpu | None:
    """Return a MIG slice with the memory of its label, else of its profile's name."""
    whole = Gpu(split_mig(item.name)[0], "Nvidia", None) if match is None else product_gpu(match)
    if item.measured and item.memory_mib is not None:
        usable, source = item.memory_mib * MIB * USABLE_PER_MILLE // 1000, f"memory of {item.origin}"
    else:
        named = mig_memory_mib(mig_profile)
        if named is None:
            return None
        usable, source = named * MIB, f"MIG profile of {item.origin}"
    if whole.usable_bytes is not None:
        usable = min(usable, whole.usable_bytes)
    return replace(whole, product=f"{whole.product} MIG {mig_profile}", usable_bytes=usable, source=source)


def _hint(item: Evidence, later: Sequence[Evidence]) -> int | None:
    """Return the total in MiB that decides between sizes of one name: the labeler's own, else the next one's."""
    if item.memory_mib is not None:
        return item.memory_mib
    for other in later:
        if other.memory_mib is not None:
            return other.memory_mib
        match = match_product(split_mig(other.name)[0])
        if match is not None and not match.note:
            return match.product.label_mib
    return None


def _with_smaller_card(gpu: Gpu, sized: Sequence[tuple[Evidence, Gpu | None]]) -> Gpu:
    """Return the smallest known GPU of a node with several kinds, which one label may name together.

    A pod cannot choose between GPUs of one resource, so it may get the smallest.
    """
    for item, other in sized:
        if not item.mixed or other is None or other.usable_bytes is None or gpu.usable_bytes is None:
            continue
        if other.usable_bytes < gpu.usable_bytes:
            return replace(other, source=f"{other.source}, the smallest of several kinds on this node")
    return gpu


def _unknown(evidence: Sequence[Evidence], resource_name: str, mig_profile: str | None) -> Gpu:
    vendor = next((item.vendor for item in evidence if item.vendor is not None), None)
    if vendor is None:
        vendor = vendor_of_resource(resource_name)
    named = mig_memory_mib(mig_profile) if mig_profile is not None else None
    if named is not None:
        return Gpu(f"MIG {mig_profile}", vendor, named * MIB, source=f"name of the resource {resource_name}")
    name = next((item.name for item in evidence if item.name), "unknown GPU")
    return Gpu(name, vendor, None, source="no known label has its memory")


def _own_labels(evidence: Sequence[Evidence]) -> tuple[Mapping[str, str], ...]:
    return tuple(item.labels for item in evidence[:1] if item.labels)


def _sharing(node: NodeRecord, prefix: str, resource_name: str, gpu: Gpu) -> tuple[Sharing, int]:
    labels = node.labels
    replicas = number(labels.get(f"{prefix}.replicas")) or 1
    strategy = labels.get(f"{prefix}.sharing-strategy") or labels.get("nvidia.com/gpu.sharing-strategy", "")
    google = labels.get("cloud.google.com/gke-gpu-sharing-strategy", "")
    if google:
        replicas = max(replicas, number(labels.get("cloud.google.com/gke-max-shared-clients-per-gpu")) or 1)
        strategy = strategy or google
    shared = replicas > 1 or bool(google) or resource_name.endswith(".shared")
    shared = shared or labels.get(f"{prefix}.product", "").upper().endswith("-SHARED")
    if shared and strategy == "mps":
        return "Mps", replicas
    if shared:
        return "TimeSlicing", max(replicas, 2)
    return ("Mig" if " MIG " in f" {gpu.product}" else "None"), 1


def _mig_exclusion(node: NodeRecord, prefix: str) -> str | None:
    if "-MIG-INVALID" in node.labels.get(f"{prefix}.product", "").upper():
        return (
            "all GPUs of the node must have the same MIG layout for MIG strategy single, found a mixture; "
            "repartition them or use strategy mixed"
        )
    return None


def _capability(node: NodeRecord, prefix: str) -> Version | None:
    for start in (prefix, "nvidia.com/gpu"):
        major = number(node.labels.get(f"{start}.compute.major"))
        if major:
            return major, number(node.labels.get(f"{start}.compute.minor")) or 0
    return None


def _driver_cuda(node: NodeRecord) -> Version | None:
    """Return the newest CUDA that the node's driver supports, from GFD's label or else from the driver's branch.

    R450 and later support CUDA 11, R525 CUDA 12, R580 CUDA 13 (NVIDIA, CUDA Compatibility, minor version
    compatibility).
    """
    for start in ("nvidia.com/cuda.runtime-version", "nvidia.com/cuda.runtime"):
        major = number(node.labels.get(f"{start}.major"))
        if major:
            return major, number(node.labels.get(f"{start}.minor")) or 0
    driver = number(node.labels.get("nvidia.com/cuda.driver-version.major"))
    driver = driver or number(node.labels.get("nvidia.com/cuda.driver.major"))
    if driver is None:
        return None
    return next(((cuda, 0) for cuda, branch in ((13, 580), (12, 525), (11, 450)) if driver >= branch), None)
