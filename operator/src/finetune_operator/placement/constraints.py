"""Where the stages of one job can run together: the workspace's volume, the model cache, and the GPUs that fit.

A workspace volume is made where its first pod runs and stays there. So PREPARE, which needs no GPU, is kept to places
in which TRAIN can follow it; TRAIN and MERGE go where the volume is, which is the scheduler's doing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_operator.api.quantities import binary_size, parse_bytes, whole_gibibytes
from finetune_operator.placement.storage import (
    StorageClass,
    VolumeRecord,
    is_node_local,
    matches,
    places,
    reachable,
)
from finetune_operator.sizing.gpus.gpu import Offer
from finetune_operator.sizing.gpus.nodes import HOSTNAME, ZONE_KEYS, NodeRecord

NODE_LOCAL_PROVISIONERS = frozenset(
    [
        "rancher.io/local-path",
        "kubernetes.io/no-provisioner",
        "openebs.io/local",
        "local.csi.openebs.io",
        "zfs.csi.openebs.io",
        "topolvm.io",
        "topolvm.cybozu.com",
        "microk8s.io/hostpath",
        "docker.io/hostpath",
        "k8s.io/minikube-hostpath",
        "kubernetes.io/host-path",
        "hostpath.csi.k8s.io",
        "local.csi.storage.deckhouse.io",
        "lvm.csi.metal-stack.io",
        "local-storage.csi.k8s.io",
    ]
)
"""Provisioners whose volumes are on the disk of one node."""
ZONELESS_PROVISIONERS = frozenset(
    [
        "nfs.csi.k8s.io",
        "k8s-sigs.io/nfs-subdir-external-provisioner",
        "cluster.local/nfs-subdir-external-provisioner",
        "rook-ceph.cephfs.csi.ceph.com",
        "cephfs.csi.ceph.com",
        "rook-ceph.rbd.csi.ceph.com",
        "rbd.csi.ceph.com",
        "efs.csi.aws.com",
        "file.csi.azure.com",
        "driver.longhorn.io",
        "smb.csi.k8s.io",
        "csi.juicefs.com",
        "csi.weka.io",
        "beegfs.csi.netapp.com",
    ]
)
"""Provisioners whose volumes can be used from every zone."""
MAXIMUM_PREFERENCES = 10
_NAMED = 4
"""Offers that a message names."""
_SHARED_MODES = frozenset(["ReadWriteMany", "ReadOnlyMany"])


@dataclass(frozen=True)
class Placement:
    """What a CPU stage's pod asks for. `affinity` is the value of `spec.affinity`, None for none."""

    affinity: dict[str, Any] | None = None
    tolerates_gpu_nodes: bool = False


@dataclass(frozen=True)
class Relocate:
    """Delete PREPARE's Job and the workspace's claim, and begin again in a place with a GPU that fits."""

    reason: str


@dataclass(frozen=True)
class Expand:
    """Raise the claim's request to `size`, a Kubernetes quantity."""

    size: str
    reason: str


@dataclass(frozen=True)
class TooSmall:
    """The workspace cannot hold the job, and cannot be made larger."""

    message: str


def prepare_placement(
    offers: Sequence[Offer],
    nodes: Collection[NodeRecord],
    storage_class: StorageClass | None,
    volume: VolumeRecord | None = None,
    *,
    certain: bool,
    node_local: Collection[str] = (),
) -> Placement:
    """Where PREPARE may run.

    `offers` are those that TRAIN may use as far as is known: with `certain` those that fit, before that all that are
    eligible. `storage_class` is that of the workspace's claim, None where it is not known; `volume` the claim's
    volume once it is bound: the scheduler follows it. `node_local` names further provisioners of node-local volumes.
    Without offers nothing is asked for, since nothing would be right.
    """
    if volume is not None:
        return Placement(tolerates_gpu_nodes=only_gpu_nodes(volume, nodes, offers))
    if not offers or storage_class is None or not storage_class.waits:
        return Placement()
    if _is_node_local(storage_class, node_local):
        usable = [offer for offer in offers if allows(storage_class, offer)]
        return Placement(_on_gpu_nodes(usable, certain=certain), tolerates_gpu_nodes=True)
    if storage_class.provisioner in ZONELESS_PROVISIONERS and not storage_class.topologies:
        return Placement()
    usable = [offer for offer in offers if allows(storage_class, offer)]
    affinity = _in_zones(usable, certain=certain)
    if affinity is None:
        return Placement()
    zones = {offer.zone for offer in usable}
    there = [node for node in nodes if node.zone in zones]
    return Placement(affinity, tolerates_gpu_nodes=bool(there) and _all_have_gpus(there, offers))


def allows(storage_class: StorageClass, offer: Offer) -> bool:
    """Whether the class makes volumes that a pod on the offer's node can use."""
    return reachable(storage_class.topologies or None, offer)


def storage_problem(storage_class: StorageClass | None, fitting: Sequence[Offer]) -> str | None:
    """Say why no volume of this class can be used where a GPU fits; None if one can, or nothing fits anyway."""
    if storage_class is None or not fitting or any(allows(storage_class, offer) for offer in fitting):
        return None
    return (
        f"storage class {storage_class.name} must make volumes where a GPU that fits is ({_where(fitting)}), its "
        f"allowedTopologies are {places(storage_class.topologies)}; name another class in "
        "workspace.storageClassName, or add a GPU node there"
    )


def volume_problem(volume: VolumeRecord | None, fitting: Sequence[Offer], role: str) -> str | None:
    """Say why a bound volume cannot be used where a GPU fits; None if it can, or nothing fits anyway.

    `role` is what the volume is for, such as "workspace".
    """
    if volume is None or not fitting or any(reachable(volume.terms, offer) for offer in fitting):
        return None
    return (
        f"the {role}'s volume {volume.name} must be usable where a GPU that fits is ({_where(fitting)}), it can be "
        f"used only on nodes with {places(volume.terms)}; add a node with such a GPU there, or move the volume"
    )


def usable_with(volumes: Iterable[VolumeRecord | None], fitting: Sequence[Offer]) -> tuple[Offer, ...]:
    """The offers on whose nodes all of these volumes can be used."""
    terms = [volume.terms for volume in volumes if volume is not None]
    return tuple(offer for offer in fitting if all(reachable(each, offer) for each in terms))


def relocation(
    volume: VolumeRecord | None,
    storage_class: StorageClass | None,
    fitting: Sequence[Offer],
    *,
    own_workspace: bool,
    weights_fetched: bool,
) -> Relocate | None:
    """Whether a workspace in the wrong place is better made anew: it is the job's own, and little is in it yet."""
    problem = volume_problem(volume, fitting, "workspace")
    if problem is None or not own_workspace or weights_fetched or storage_class is None:
        return None
    if not storage_class.waits or not any(allows(storage_class, offer) for offer in fitting):
        return None
    return Relocate(f"{problem.partition(';')[0]}; it is made anew where PREPARE is placed now")


def only_gpu_nodes(volume: VolumeRecord, nodes: Collection[NodeRecord], offers: Sequence[Offer]) -> bool:
    """Whether every node on which the volume can be used has a GPU, so that CPU stages must be let onto these."""
    there = [node for node in nodes if matches(volume.terms, {HOSTNAME: node.name, **node.labels}, node.name)]
    if volume.terms is not None and is_node_local(volume.terms):
        return not there or _any_has_gpu(there, offers)
    return bool(there) and _all_have_gpus(there, offers)


def model_cache_problem(
    claim: str, access_modes: Collection[str], volume: VolumeRecord | None, nodes: Iterable[NodeRecord]
) -> str | None:
    """Say why the stages cannot share the model cache; None if they can.

    `nodes` are those that the stages may use: all of them where the volume is not bound, else what it allows counts.
    """
    if not access_modes or _SHARED_MODES & set(access_modes):
        return None
    usable = [
        node
        for node in nodes
        if volume is None or matches(volume.terms, {HOSTNAME: node.name, **node.labels}, node.name)
    ]
    if len(usable) == 1 and "ReadWriteOnce" in access_modes:
        return None
    where = f"{len(usable)} nodes" if usable else "no node that exists"
    return (
        f"modelCache must be a claim that several nodes can mount (ReadWriteMany or ReadOnlyMany), {claim} has "
        f"{', '.join(sorted(access_modes))} and the stages may run on {where}; use a claim of a shared file system, or "
        "leave modelCache out"
    )


def workspace_size(
    capacity: str, needed: int, why: str, storage_class: StorageClass | None, *, own_workspace: bool
) -> Expand | TooSmall | None:
    """What to do about a workspace of `capacity` for a job that needs `needed` bytes; None if it suffices.

    Raises ValueError for a capacity that is no quantity.
    """
    found = parse_bytes(capacity)
    if needed <= found:
        return None
    size = whole_gibibytes(needed)
    short = f"the workspace must hold {binary_size(needed)} ({why}), it has {binary_size(found)}"
    if own_workspace and storage_class is not None and storage_class.expandable:
        return Expand(size, f"{short}; its storage class can enlarge it")
    remedy = (
        f"create the job again with workspace.size: {size}"
        if own_workspace
        else f"enlarge the claim of workspace.existingClaim to {size}"
    )
    return TooSmall(f"{short} and its storage class cannot enlarge it; {remedy}")


def _is_node_local(storage_class: StorageClass, further: Collection[str]) -> bool:
    return storage_class.provisioner in NODE_LOCAL_PROVISIONERS or storage_class.provisioner in further


def _on_gpu_nodes(offers: Sequence[Offer], *, certain: bool) -> dict[str, Any] | None:
    """Keep to nodes that have one of the offers, or would have it; None where nothing names such nodes."""
    terms = _terms(_hostname(offer) for offer in offers)
    for offer in offers:
        term = {"matchExpressions": [_in(key, [value]) for key, value in sorted(offer.labels.items())]}
        if offer.node is None and offer.labels and term not in terms:
            terms.append(term)
    return _node_affinity(terms, [] if certain else _preferred(offers, _hostname)) if terms else None


def _in_zones(offers: Sequence[Offer], *, certain: bool) -> dict[str, Any] | None:
    """Keep to the offers' zones; where some offer's zone is not known, only prefer the others'."""
    terms = _terms(_zone(offer) for offer in offers)
    if not terms:
        return None
    if not all(offer.zone for offer in offers):
        return _node_affinity([], [{"weight": 100, "preference": term} for term in terms])
    return _node_affinity(terms, [] if certain else _preferred(offers, _zone))


def _hostname(offer: Offer) -> tuple[str, str] | None:
    """The label that names the offer's node, None in the catalogue."""
    return None if offer.node is None else (HOSTNAME, offer.labels.get(HOSTNAME, offer.node))


def _zone(offer: Offer) -> tuple[str, str] | None:
    """The label that names the offer's zone; old nodes have only the old key."""
    if offer.zone is None:
        return None
    return next((key for key in ZONE_KEYS if offer.labels.get(key)), ZONE_KEYS[0]), offer.zone


def _terms(labels: Iterable[tuple[str, str] | None]) -> list[dict[str, Any]]:
    """One term for each key, with all of its values."""
    values: dict[str, set[str]] = {}
    for label in labels:
        if label is not None:
            values.setdefault(label[0], set()).add(label[1])
    return [{"matchExpressions": [_in(key, sorted(found))]} for key, found in sorted(values.items())]


def _preferred(
    offers: Sequence[Offer], label_of: Callable[[Offer], tuple[str, str] | None]
) -> list[dict[str, Any]]:
    """Weights by the largest GPU that a place has: before a model's size is known, that is where most fit."""
    largest: dict[tuple[str, str], int] = {}
    for offer in offers:
        label = label_of(offer)
        if label is not None:
            largest[label] = max(largest.get(label, 0), offer.gpu.usable_bytes or 0)
    sizes = sorted(set(largest.values()), reverse=True)[:MAXIMUM_PREFERENCES]
    if len(set(largest.values())) < 2:
        return []
    return [
        {"weight": 100 - 99 * rank // (len(sizes) - 1), "preference": term}
        for rank, size in enumerate(sizes)
        for term in _terms(label for label, found in largest.items() if found == size)
    ]


def _node_affinity(required: list[dict[str, Any]], preferred: list[dict[str, Any]]) -> dict[str, Any]:
    affinity: dict[str, Any] = {}
    if required:
        affinity["requiredDuringSchedulingIgnoredDuringExecution"] = {"nodeSelectorTerms": required}
    if preferred:
        affinity["preferredDuringSchedulingIgnoredDuringExecution"] = preferred
    return {"nodeAffinity": affinity}


def _in(key: str, values: Sequence[str]) -> dict[str, Any]:
    return {"key": key, "operator": "In", "values": list(values)}


def _all_have_gpus(nodes: Iterable[NodeRecord], offers: Iterable[Offer]) -> bool:
    having = {offer.node for offer in offers}
    return all(node.name in having for node in nodes)


def _any_has_gpu(nodes: Iterable[NodeRecord], offers: Iterable[Offer]) -> bool:
    having = {offer.node for offer in offers}
    return any(node.name in having for node in nodes)


def _where(offers: Sequence[Offer]) -> str:
    """The offers' places in few words."""
    texts = sorted(
        {
            f"{offer.gpu.product} "
            + (f"on node {offer.node}" if offer.node is not None else f"of gpuProfiles {offer.profile}")
            + (f" in zone {offer.zone}" if offer.zone else "")
            for offer in offers
        }
    )
    return ", ".join(texts[:_NAMED]) + (f" and {len(texts) - _NAMED} more" if len(texts) > _NAMED else "")
