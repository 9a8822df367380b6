"""Reads the evidence about a node's GPUs from the labels and annotations of every known labeler, in order of precedence.

1. NVIDIA GPU feature discovery (GFD) and AMD's Node Labeller, which ask the driver.
2. HAMi's annotation, which comes from the driver too, but has no label to select by.
3. Autoscalers (Karpenter, EKS, Azure) and clouds (GKE, AWS, Alibaba, Tencent, CoreWeave), which know their order.
4. The instance type, if all instances of the type have one kind of GPU.
The first evidence with a size counts. The others only help to distinguish two sizes of one name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from finetune_operator.sizing.gpus.gpu import Vendor
from finetune_operator.sizing.gpus.instance_types import instance_gpu
from finetune_operator.sizing.gpus.nodes import HAMI_REGISTER, INSTANCE_TYPE_KEYS, NodeRecord

GKE_ACCELERATOR = "cloud.google.com/gke-accelerator"
GKE_PARTITION = "cloud.google.com/gke-gpu-partition-size"
ORDERED_KEYS = (
    "karpenter.k8s.aws/instance-gpu-name",
    "eks.amazonaws.com/instance-gpu-name",
    "karpenter.azure.com/sku-gpu-name",
    GKE_ACCELERATOR,
    "k8s.amazonaws.com/accelerator",
    "kubernetes.azure.com/accelerator",
    "accelerator",
    "aliyun.accelerator/nvidia_name",
    "cloud.tencent.com/tke-accelerator",
    "gpu.nvidia.com/class",
    "skypilot.co/accelerator",
)
"""Labels that name a GPU because an autoscaler or a cloud ordered it."""
_ORDERED_MEMORY = {
    "karpenter.k8s.aws/instance-gpu-name": "karpenter.k8s.aws/instance-gpu-memory",
    "eks.amazonaws.com/instance-gpu-name": "eks.amazonaws.com/instance-gpu-memory",
    "aliyun.accelerator/nvidia_name": "aliyun.accelerator/nvidia_mem",
}
_ORDERED = frozenset(ORDERED_KEYS)
_AMD_PREFIXES = ("amd.com/gpu", "beta.amd.com/gpu")
_DRIVER_PREFIXES = ("nvidia.com/", *_AMD_PREFIXES)
_MEMORY = re.compile(r"^(\d+)\s*(m|mi|mib|mb|g|gi|gib|gb)?$", re.IGNORECASE)


@dataclass(frozen=True)
class Evidence:
    """The evidence of one labeler: a product's name, the total memory in MiB, or both.

    `labels` are those by which a pod can select the GPU. `measured` means that the total comes from the driver. Other
    totals are advertised sizes, which are larger.
    """

    origin: str
    name: str
    memory_mib: int | None
    labels: Mapping[str, str]
    measured: bool
    vendor: Vendor | None = None
    mixed: bool = False
    """True if the node has several kinds of GPU; this is the smallest."""


def has_gpu_evidence(node: NodeRecord) -> bool:
    """Return whether there is any evidence of a GPU; most nodes of a large cluster have none."""
    return (
        HAMI_REGISTER in node.annotations
        or any(key.startswith(_DRIVER_PREFIXES) or key in _ORDERED for key in node.labels)
        or any(instance_gpu(node.labels.get(key, "")) is not None for key in INSTANCE_TYPE_KEYS)
    )


def read_evidence(node: NodeRecord, prefix: str) -> tuple[Evidence, ...]:
    """Return all evidence about a node's GPUs, the most trusted first.

    `prefix` is the start of GFD's labels: `nvidia.com/gpu`, or `nvidia.com/mig-3g.40gb` for that slice.
    """
    readers = (_gfd(node, prefix), _amd(node), _hami(node), _ordered(node), _instance_type(node))
    return tuple(evidence for reader in readers for evidence in reader)


def number(text: str | None) -> int | None:
    """Return a label's whole number; None for anything else."""
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) <= 9 else None


def memory_mib(text: str | None) -> int | None:
    """Return the MiB of a label such as 16384, 15109MiB or 64G, all binary units; None for anything else."""
    found = _MEMORY.match((text or "").strip())
    if found is None or len(found[1]) > 9:
        return None
    factor = 1024 if (found[2] or "m").lower().startswith("g") else 1
    return int(found[1]) * factor or None


def _gfd(node: NodeRecord, prefix: str) -> Iterator[Evidence]:
    product = node.labels.get(f"{prefix}.product", "")
    memory = number(node.labels.get(f"{prefix}.memory")) or None
    if product or memory:
        labels = {f"{prefix}.product": product} if product else {}
        yield Evidence(f"{prefix}.product", product, memory, labels, measured=True, vendor="Nvidia")


def _amd(node: NodeRecord) -> Iterator[Evidence]:
    for prefix in _AMD_PREFIXES:
        kinds = _amd_values(node, f"{prefix}.vram")
        products = _amd_values(node, f"{prefix}.product-name")
        if not kinds and not products:
            continue
        sizes = [size for size in map(memory_mib, kinds) if size is not None]
        several = len(kinds) > 1 or len(products) > 1
        labels: Mapping[str, str] = {}
        if not several:
            found = products or kinds
            labels = dict(next(iter(found.values())))
        yield Evidence(
            f"{prefix}.product-name" if products else f"{prefix}.vram",
            next(iter(products)) if len(products) == 1 else "",
            min(sizes, default=None),
            labels,
            measured=True,
            vendor="Amd",
            mixed=several,
        )
        return


def _amd_values(node: NodeRecord, key: str) -> dict[str, dict[str, str]]:
    """Return the values of one property, each with its label: `key=value`, or `key.value=count` if kinds may differ."""
    if node.labels.get(key):
        return {node.labels[key]: {key: node.labels[key]}}
    start = f"{key}."
    return {
        label[len(start) :]: {label: value}
        for label, value in sorted(node.labels.items())
        if label.startswith(start) and len(label) > len(start)
    }


def _hami(node: NodeRecord) -> Iterator[Evidence]:
    devices = _hami_devices(node.annotations.get(HAMI_REGISTER, ""))
    if devices:
        memory, name = min(devices)
        mixed = len({memory for memory, _ in devices}) > 1
        yield Evidence(HAMI_REGISTER, name, memory, {}, measured=True, vendor="Nvidia", mixed=mixed)


def _hami_devices(text: str) -> list[tuple[int, str]]:
    """Return each device's memory in MiB and name, from a JSON list or `uuid,split,memory,cores,type,numa,health:`."""
    if text.lstrip().startswith("["):
        try:
            listed = json.loads(text)
        except ValueError:
            return []  # another writer's annotation: unreadable content is no evidence
        return [
            (device["devmem"], str(device.get("type") or ""))
            for device in listed
            if isinstance(device, dict)
            and isinstance(device.get("devmem"), int)
            and 0 < device["devmem"] < 10**9
        ]
    found = []
    for device in text.split(":"):
        fields = device.split(",")
        memory = number(fields[2]) if len(fields) >= 5 else None
        if memory:
            found.append((memory, fields[4]))
    return found


def _ordered(node: NodeRecord) -> Iterator[Evidence]:
    for key in ORDERED_KEYS:
        name = node.labels.get(key, "")
        if not name:
            continue
        labels = {key: name}
        partition = node.labels.get(GKE_PARTITION, "")
        if key == GKE_ACCELERATOR and partition:
            labels[GKE_PARTITION] = partition
            name = f"{name}-MIG-{partition}"
        yield Evidence(
            key, name, memory_mib(node.labels.get(_ORDERED_MEMORY.get(key, ""))), labels, measured=False
        )


def _instance_type(node: NodeRecord) -> Iterator[Evidence]:
    for key in INSTANCE_TYPE_KEYS:
        kind = node.labels.get(key, "")
        name = instance_gpu(kind)
        if name is not None:
            yield Evidence(key, name, None, {key: kind}, measured=False)
            return
