"""A GPU and an offer of GPUs, with the facts that sizing needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Vendor = Literal["Nvidia", "Amd", "Unknown"]
Version = tuple[int, int]
"""Major and minor."""


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU. `usable_bytes` is the memory that one process can allocate, None if unknown.

    `compute_capability` and `driver_cuda` (the newest CUDA version that the node's driver supports) are None if unknown,
    which never excludes a GPU. `source` names the origin of the size.
    """

    product: str
    vendor: Vendor
    usable_bytes: int | None
    compute_capability: Version | None = None
    driver_cuda: Version | None = None
    source: str = ""


Sharing = Literal["None", "TimeSlicing", "Mps", "Mig"]
State = Literal["Available", "Provisioning", "Cordoned", "NotReady"]


@dataclass(frozen=True)
class Offer:
    """One kind of GPU that a node offers, or that a new node of a GPU profile would offer.

    `node` is None for a GPU profile, and `profile` is its name. `labels` are those of the node, or those that the
    autoscaler knows before the node exists. `count` is the allocatable number. `taints` are as in core/v1. Each of
    `selector_labels` is a set of labels by which a pod can select this GPU, the most trusted first. If there is none,
    only the node's name selects it. `exclusion_reason` says why no pod may use the offer, whatever it selects and
    tolerates; None if pods may use it.
    """

    gpu: Gpu
    resource_name: str
    count: int
    node: str | None = None
    profile: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Mapping[str, str], ...] = ()
    sharing: Sharing = "None"
    replicas: int = 1
    state: State = "Available"
    zone: str | None = None
    selector_labels: tuple[Mapping[str, str], ...] = ()
    exclusion_reason: str | None = None
