"""Node constraints that let the stages of one job run together: workspace volume, model cache and suitable GPUs.

A workspace volume is created where its first pod runs, and it stays there. PREPARE needs no GPU, so it is restricted to
nodes and zones in which TRAIN can follow. The scheduler then places TRAIN and MERGE where the volume is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from finetune_operator.api.quantities import binary_size, parse_bytes, whole_gibibytes
from finetune_operator.placement.storage import (
    StorageClass,
    VolumeRecord,
    describe_terms,
    is_node_local,
    matches,
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
"""Maximum number of offers that a message names."""
_SHARED_MODES = frozenset(["ReadWriteMany", "ReadOnlyMany"])

NodeTest = Callable[[NodeRecord], bool]
"""Tests whether a stage may use a node."""


def _any_node(_node: NodeRecord) -> bool:
    return True


@dataclass(frozen=True)
class Placement:
    """Placement of a CPU stage's pod. `affinity` is the value of `spec.affinity`, or None for no affinity."""

    affinity: dict[str, Any] | None = None
    tolerates_gpu_nodes: bool = False


@dataclass(frozen=True)
class ExpandWorkspace:
    """The workspace is too small. The claim's request must rise to `size`, a Kubernetes quantity."""

    size: str
    reason: str


@dataclass(frozen=True)
class InfeasibleWorkspace:
    """The workspace is too small, and its storage cannot be expanded."""

    message: str


def prepare_placement(
    offers: Sequence[Offer],
    nodes: Collection[NodeRecord],
    storage_class: StorageClass | None,
    volume: VolumeRecord | None = None,
    *,
    certain: bool,
    node_local: Collection[str] = (),
    may_use: NodeTest = _any_node,
) -> Placement:
    """Choose where PREPARE may run.

    `offers` are the GPUs that TRAIN may use: those that fit if `certain` is True, and all eligible ones before the
    model's size is known. `storage_class` is the class of the workspace's claim, or None if it is unknown. `volume` is
    the claim's volume once it is bound, and the scheduler follows it. `node_local` names additional provisioners of
    node-local volumes. `may_use` tests whether PREPARE's own rules allow a node. Without offers PREPARE has no
    constraint, because none would be right.
    """
    if volume is not None:
        return Placement(tolerates_gpu_nodes=only_gpu_nodes(volume, nodes, offers, may_use))
    reach = volume_reach(storage_class, node_local)
    if not offers or storage_class is None or reach is None:
        return Placement()
    if reach == "Node":
        usable = [offer for offer in offers if allows(storage_class, offer)]
        return Placement(_on_gpu_nodes(usable, certain=certain), tolerates_gpu_nodes=True)
    usable = [offer for offer in offers if allows(storage_class, offer)]
    affinity = _in_zones(usable, certain=certain)
    if affinity is None:
        return Placement()
    zones = {offer.zone for offer in usable}
    nodes_there = [node for node in nodes if node.zone in zones and may_use(node)]
    return Placement(affinity, tolerates_gpu_nodes=bool(nodes_there) and _all_have_gpus(nodes_there, offers))


def volume_reach(
    storage_class: StorageClass | None, node_local: Collection[str] = ()
) -> Literal["Node", "Zone"] | None:
    """Say to what a volume of this class binds the stages: to the node or the zone of its first pod.

    None means that the first pod's place does not matter. `node_local` names additional provisioners of node-local
    volumes.
    """
    if storage_class is None or not storage_class.waits_for_consumer:
        return None
    if storage_class.provisioner in NODE_LOCAL_PROVISIONERS or storage_class.provisioner in node_local:
        return "Node"
    zoneless = storage_class.provisioner in ZONELESS_PROVISIONERS and not storage_class.topologies
    return None if zoneless else "Zone"


def allows(storage_class: StorageClass, offer: Offer) -> bool:
    """Return True if the class creates volumes that a pod on the offer's node can use."""
    return reachable(storage_class.topologies or None, offer)


def storage_problem(storage_class: StorageClass | None, fitting: Sequence[Offer]) -> str | None:
    """Explain why no suitable GPU can use a volume of this class. None if one can, or if no GPU is suitable."""
    if storage_class is None or not fitting or any(allows(storage_class, offer) for offer in fitting):
        return None
    return (
        f"storage class {storage_class.name} must create volumes that a suitable GPU can use ({locations(fitting)}), "
        f"but its allowedTopologies are {describe_terms(storage_class.topologies)}; set another class in "
        "workspace.storageClassName, or add a GPU node there"
    )


def volume_problem(volume: VolumeRecord | None, fitting: Sequence[Offer], role: str) -> str | None:
    """Explain why no suitable GPU can use a bound volume. None if one can, or if no GPU is suitable.

    `role` names the volume's purpose, such as "workspace".
    """
    if volume is None or not fitting or any(reachable(volume.terms, offer) for offer in fitting):
        return None
    return (
        f"the {role}'s volume {volume.name} must be reachable from a suitable GPU ({locations(fitting)}), but only "
        f"nodes with {describe_terms(volume.terms)} can use it; add a node with such a GPU there, or move the volume"
    )


def compatible_offers(volumes: Iterable[VolumeRecord | None], fitting: Sequence[Offer]) -> tuple[Offer, ...]:
    """The offers on whose nodes all of these volumes can be used."""
    terms = [volume.terms for volume in volumes if volume is not None]
    return tuple(offer for offer in fitting if all(reachable(each, offer) for each in terms))


def relocation_reason(
    volume: VolumeRecord | None,
    storage_class: StorageClass | None,
    fitting: Sequence[Offer],
    *,
    own_workspace: bool,
    weights_fetched: bool,
) -> str | None:
    """Explain why the workspace must be created again elsewhere; None if it stays.

    It must be the job's own claim, and no weights may have been downloaded yet.
    """
    problem = volume_problem(volume, fitting, "workspace")
    if problem is None or not own_workspace or weights_fetched or storage_class is None:
        return None
    if not storage_class.waits_for_consumer or not any(allows(storage_class, offer) for offer in fitting):
        return None
    return f"{problem.partition(';')[0]}; the operator creates it again where PREPARE runs now"


def only_gpu_nodes(
    volume: VolumeRecord,
    nodes: Collection[NodeRecord],
    offers: Sequence[Offer],
    may_use: NodeTest = _any_node,
) -> bool:
    """Return True if every node that can use the volume has a GPU, so that CPU stages need a toleration.

    `may_use` tests whether the stage's own rules allow a node.
    """
    nodes_there = [
        node
        for node in nodes
        if matches(volume.terms, {HOSTNAME: node.name, **node.labels}, node.name) and may_use(node)
    ]
    if volume.terms is not None and is_node_local(volume.terms):
        return not nodes_there or _any_has_gpu(nodes_there, offers)
    return bool(nodes_there) and _all_have_gpus(nodes_there, offers)


def model_cache_problem(
    claim: str, access_modes: Collection[str], volume: VolumeRecord | None, nodes: Iterable[NodeRecord]
) -> str | None:
    """Explain why the stages cannot share the model cache; None if they can.

    `nodes` are the nodes that the stages may use. If the volume is bound, only those that can use it count.
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
    found = f"{len(usable)} nodes" if usable else "no existing node"
    return (
        f"modelCache must be a claim that several nodes can mount (ReadWriteMany or ReadOnlyMany), but {claim} has "
        f"{', '.join(sorted(access_modes))} and the stages may run on {found}; use a claim on a shared file system, or "
        "remove modelCache"
    )


def check_workspace_size(
    capacity: str, needed: int, why: str, storage_class: StorageClass | None, *, own_workspace: bool
) -> ExpandWorkspace | InfeasibleWorkspace | None:
    """Compare a workspace's `capacity` with the `needed` bytes of a job; None if it is large enough.

    `why` explains the need in messages. Raises ValueError for a capacity that is not a quantity.
    """
    found = parse_bytes(capacity)
    if needed <= found:
        return None
    size = whole_gibibytes(needed)
    short = f"the workspace must hold {binary_size(needed)} ({why}), but it has {binary_size(found)}"
    if own_workspace and storage_class is not None and storage_class.expandable:
        return ExpandWorkspace(size, f"{short}; its storage class can expand it")
    remedy = (
        f"Create the job again with workspace.size: {size}."
        if own_workspace
        else f"Expand the claim of workspace.existingClaim to {size}."
    )
    return InfeasibleWorkspace(f"{short}. Its storage class cannot expand it. {remedy}")


def _on_gpu_nodes(offers: Sequence[Offer], *, certain: bool) -> dict[str, Any] | None:
    """Restrict a pod to nodes that have, or will have, one of the offers; None if no label names such nodes."""
    terms = _terms(_hostname(offer) for offer in offers)
    for offer in offers:
        term = {"matchExpressions": [_in(key, [value]) for key, value in sorted(offer.labels.items())]}
        if offer.node is None and offer.labels and term not in terms:
            terms.append(term)
    return _node_affinity(terms, [] if certain else _preferred(offers, _hostname)) if terms else None


def _in_zones(offers: Sequence[Offer], *, certain: bool) -> dict[str, Any] | None:
    """Restrict a pod to the offers' zones. If the zone of an offer is unknown, only prefer the known zones."""
    terms = _terms(_zone(offer) for offer in offers)
    if not terms:
        return None
    if not all(offer.zone for offer in offers):
        return _node_affinity([], [{"weight": 100, "preference": term} for term in terms])
    return _node_affinity(terms, [] if certain else _preferred(offers, _zone))


def _hostname(offer: Offer) -> tuple[str, str] | None:
    """The label that names the offer's node; None for an offer of a GPU profile."""
    return None if offer.node is None else (HOSTNAME, offer.labels.get(HOSTNAME, offer.node))


def _zone(offer: Offer) -> tuple[str, str] | None:
    """The label that names the offer's zone; old nodes have the old key only."""
    if offer.zone is None:
        return None
    return next((key for key in ZONE_KEYS if offer.labels.get(key)), ZONE_KEYS[0]), offer.zone


def _terms(labels: Iterable[tuple[str, str] | None]) -> list[dict[str, Any]]:
    """One term for each key, with all its values."""
    values: dict[str, set[str]] = {}
    for label in labels:
        if label is not None:
            values.setdefault(label[0], set()).add(label[1])
    return [{"matchExpressions": [_in(key, sorted(found))]} for key, found in sorted(values.items())]


def _preferred(
    offers: Sequence[Offer], label_of: Callable[[Offer], tuple[str, str] | None]
) -> list[dict[str, Any]]:
    """Weights by the largest GPU of each node or zone: an unknown model is most likely to fit there."""
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


def locations(offers: Sequence[Offer]) -> str:
    """Describe briefly where the offers are."""
    texts = sorted(
        {
            f"{offer.gpu.product} "
            + (f"on node {offer.node}" if offer.node is not None else f"of gpuProfiles {offer.profile}")
            + (f" in zone {offer.zone}" if offer.zone else "")
            for offer in offers
        }
    )
    return ", ".join(texts[:_NAMED]) + (f" and {len(texts) - _NAMED} more" if len(texts) > _NAMED else "")
