"""A GPU as far as sizing is concerned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Vendor = Literal["Nvidia", "Amd", "Unknown"]
Version = tuple[int, int]
"""Major and minor."""


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU. `usable_bytes` is what one process can allocate, None where nothing tells it.

    `compute_capability` and `driver_cuda` (the newest CUDA version that the node's driver runs) are None where
    unknown, which never makes a GPU unfit. `source` says where the size was read.
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
    """One kind of GPU that one node offers, or that the administrator's catalogue says a new node would offer.

    `node` is None for the catalogue, then `profile` names its entry. `labels` are those of the node, or those that
    the autoscaler knows before the node exists. `count` is the allocatable number; `taints` as in core/v1.
    Each of `selector_labels` is a set of labels by which a pod can ask for this GPU, the best known first; none means that
    only the node's name will do. `exclusion_reason` says why no pod may use the offer, whatever it selects and tolerates.
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
