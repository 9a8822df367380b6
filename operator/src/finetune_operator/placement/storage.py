"""Storage classes, volumes and claims, and the nodes on which a volume can be used by the scheduler's rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_operator.api.quantities import parse_bytes
from finetune_operator.sizing.gpus.gpu import Offer
from finetune_operator.sizing.gpus.node_terms import Requirement, Term, describe_requirement, holds
from finetune_operator.sizing.gpus.nodes import HOSTNAME, ZONE_KEYS

_DEFAULT_ANNOTATIONS = (
    "storageclass.kubernetes.io/is-default-class",
    "storageclass.beta.kubernetes.io/is-default-class",
)
_NODE_NAME = "metadata.name"
_NODE_KEY_ENDS = ("/hostname", "/node", "/nodename", "/node-name", "/node_id")
"""Endings of keys whose value is a single node. A node that does not exist yet never has such a value."""
_ZONE_KEY_END = "/zone"
"""Storage drivers use their own zone keys (topology.ebs.csi.aws.com/zone) with the same values."""
_ZONES_OF_ONE_VOLUME = "__"
"""Separates the zones in the label of a volume that is in several zones."""


@dataclass(frozen=True)
class StorageClass:
    """The part of a storage.k8s.io/v1 StorageClass that placement needs.

    If `waits_for_consumer` is True, the volume is created where its first pod runs (WaitForFirstConsumer). The terms of
    `topologies` restrict where volumes are created; without terms they are created anywhere. `created` decides between
    several default classes.
    """

    name: str
    provisioner: str
    waits_for_consumer: bool
    expandable: bool
    topologies: tuple[Term, ...] = ()
    default: bool = False
    created: str = ""


@dataclass(frozen=True)
class VolumeRecord:
    """The part of a v1 PersistentVolume that placement needs. `terms` is None if every node can use the volume."""

    name: str
    terms: tuple[Term, ...] | None
    access_modes: tuple[str, ...]
    capacity: int
    storage_class: str = ""


@dataclass(frozen=True)
class MountedClaim:
    """A claim that the stages mount. `volume` is None until it is bound, or if the operator may not read volumes."""

    name: str
    uid: str
    access_modes: tuple[str, ...] = ()
    capacity: str | None = None
    volume: VolumeRecord | None = None


@dataclass(frozen=True)
class JobVolumes:
    """The current claims of a job, each None if there is none, and the storage class of its workspace.

    `read_only_claims` names those of its claims, sources included, that have only the access mode ReadOnlyMany.
    """

    workspace: MountedClaim | None = None
    model_cache: MountedClaim | None = None
    storage_class: StorageClass | None = None
    read_only_claims: tuple[str, ...] = ()


def project_storage_class(body: Mapping[str, Any]) -> StorageClass:
    """Project a StorageClass. Raises KeyError without a name."""
    metadata = body["metadata"]
    annotations = metadata.get("annotations") or {}
    return StorageClass(
        name=metadata["name"],
        provisioner=body.get("provisioner") or "",
        waits_for_consumer=body.get("volumeBindingMode") == "WaitForFirstConsumer",
        expandable=body.get("allowVolumeExpansion") is True,
        topologies=tuple(
            tuple(
                Requirement(item["key"], "In", tuple(item.get("values") or ()))
                for item in term.get("matchLabelExpressions") or ()
            )
            for term in body.get("allowedTopologies") or ()
        ),
        default=any(annotations.get(name) == "true" for name in _DEFAULT_ANNOTATIONS),
        created=str(metadata.get("creationTimestamp") or ""),
    )


def project_volume(body: Mapping[str, Any]) -> VolumeRecord:
    """Project a PersistentVolume. Raises KeyError without a name, ValueError for a capacity that is not a quantity.

    Volumes from before node affinity give their zones in labels only. These zones become part of the terms.
    """
    metadata, spec = body["metadata"], body.get("spec") or {}
    required = (spec.get("nodeAffinity") or {}).get("required")
    terms = (
        None
        if required is None
        else tuple(_project_term(term) for term in required.get("nodeSelectorTerms") or ())
    )
    labels = metadata.get("labels") or {}
    zones = tuple(
        Requirement(key, "In", tuple(labels[key].split(_ZONES_OF_ONE_VOLUME)))
        for key in ZONE_KEYS
        if labels.get(key)
    )
    if zones:
        terms = (zones,) if terms is None else tuple((*term, *zones) if term else term for term in terms)
    return VolumeRecord(
        name=metadata["name"],
        terms=terms,
        access_modes=tuple(spec.get("accessModes") or ()),
        capacity=parse_bytes(str((spec.get("capacity") or {}).get("storage", "0"))),
        storage_class=spec.get("storageClassName") or "",
    )


def find_storage_class(name: str | None, classes: Sequence[StorageClass]) -> StorageClass | None:
    """Find the class of a claim that asks for `name`; for None the cluster's default class, the newest of several.

    Returns None for the empty name, which asks for a volume without a class, and for a class that does not exist.
    """
    if name is not None:
        return next((item for item in classes if item.name == name), None)
    defaults = [item for item in classes if item.default]
    return max(defaults, key=lambda item: (item.created, item.name), default=None)


def matches(terms: Sequence[Term] | None, labels: Mapping[str, str], node_name: str) -> bool:
    """Return True if a node's labels and name satisfy one of `terms`. Every node satisfies None."""
    if terms is None:
        return True
    return any(
        bool(term) and all(holds(item, {_NODE_NAME: node_name} if item.field else labels) for item in term)
        for term in terms
    )


def reachable(terms: Sequence[Term] | None, offer: Offer) -> bool:
    """Return True if a pod on the offer's node can use a volume with these `terms`.

    A node that does not exist yet, or that is still starting, has unknown labels. They are assumed to match, but a
    volume pinned to a specific host never matches. A driver's own zone key is compared with the node's zone.
    """
    if offer.node is not None and offer.state == "Available":
        return matches(terms, {HOSTNAME: offer.node, **offer.labels}, offer.node)
    if terms is None:
        return True
    return any(bool(term) and all(_may_hold(item, offer) for item in term) for term in terms)


def describe_terms(terms: Sequence[Term] | None) -> str:
    """Describe the terms briefly, for messages."""
    if terms is None:
        return "every node"
    texts = [" and ".join(describe_requirement(item) for item in term) for term in terms if term]
    return " or ".join(texts) or "no node"


def is_node_local(terms: Sequence[Term] | None) -> bool:
    """Return True if every term names single nodes."""
    return bool(terms) and all(
        any(item.field or item.key.endswith(_NODE_KEY_ENDS) for item in term) for term in terms or ()
    )


def _project_term(term: Mapping[str, Any]) -> Term:
    return tuple(
        Requirement(item["key"], item["operator"], tuple(item.get("values") or ()), field=kind)
        for member, kind in (("matchExpressions", False), ("matchFields", True))
        for item in term.get(member) or ()
    )


def _may_hold(item: Requirement, offer: Offer) -> bool:
    if item.field or item.key.endswith(_NODE_KEY_ENDS):
        own = {} if offer.node is None else {item.key: offer.labels.get(item.key, offer.node)}
        return holds(item, own)
    if item.key in offer.labels:
        return holds(item, offer.labels)
    if item.key.endswith(_ZONE_KEY_END):
        return offer.zone is None or holds(item, {item.key: offer.zone})
    return True
