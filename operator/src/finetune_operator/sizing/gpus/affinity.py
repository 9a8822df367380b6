"""How a pod asks for the GPUs that fit: node affinity over labels, exact for the nodes that are known.

Every node that fits matches a required term and none that does not fit does. A term names a GPU by the labels that
told it; the catalogue's entries are named by their own labels only, for an autoscaler knows no others of a node that
does not exist. A label that also stands on a node that does not fit is narrowed by a further one, at last to names of
nodes. Labels of memory sizes that only a running node has (`nvidia.com/gpu.memory`) are never used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from finetune_operator.sizing.gpus.gpu import Offer
from finetune_operator.sizing.gpus.nodes import HOSTNAME, INSTANCE_TYPE_KEYS

MAXIMUM_PREFERENCES = 10
"""Sizes that get a weight of their own; Kubernetes' weights run from 100 to 1."""

_NARROWING = (
    "karpenter.k8s.aws/instance-gpu-memory",
    "eks.amazonaws.com/instance-gpu-memory",
    *INSTANCE_TYPE_KEYS,
    "karpenter.sh/nodepool",
    "eks.amazonaws.com/nodegroup",
    "cloud.google.com/gke-nodepool",
    "kubernetes.azure.com/agentpool",
    "nvidia.com/gpu.sharing-strategy",
    "nvidia.com/gpu.replicas",
    "nvidia.com/cuda.runtime-version.major",
    "nvidia.com/cuda.driver-version.major",
)
"""Labels that may tell two nodes of one GPU apart, those that autoscalers know first."""

_Pairs = frozenset[tuple[str, str]]


@dataclass
class _Terms:
    """Terms in the making: pairs that stand alone are grouped by key, sets of pairs are terms of their own."""

    singles: dict[str, list[str]] = field(default_factory=dict)
    sets: list[_Pairs] = field(default_factory=list)
    node_names: list[str] = field(default_factory=list)
    profile_terms: list[dict[str, Any]] = field(default_factory=list)

    def add(self, pairs: _Pairs) -> None:
        if len(pairs) != 1:
            if pairs not in self.sets:
                self.sets.append(pairs)
            return
        ((key, value),) = pairs
        values = self.singles.setdefault(key, [])
        if value not in values:
            values.append(value)

    def add_profile_term(self, term: dict[str, Any]) -> None:
        if term not in self.profile_terms:
            self.profile_terms.append(term)

    def covers(self, offer: Offer) -> bool:
        return (
            offer.node in self.node_names
            or any(offer.labels.get(key) in values for key, values in self.singles.items())
            or any(_matches(pairs, offer) for pairs in self.sets)
        )


def node_affinity(fitting: Sequence[Offer], all_offers: Sequence[Offer]) -> dict[str, Any]:
    """Return the value of `spec.affinity.nodeAffinity` for a pod that may run on `fitting` and nowhere else.

    `all_offers` are all offers of the resource. One whose GPU is as good as a fitting one's is left to the scheduler:
    only the pod's tolerations or node selector can have ruled it out. The smallest GPUs are preferred. Raises
    ValueError if nothing fits.
    """
    if not fitting:
        raise ValueError("a node affinity must have at least one offer that fits, found none")
    chosen = sorted(fitting, key=_order)
    taken = {_identity(offer) for offer in chosen}
    good = {_kind(offer) for offer in chosen}
    others = [
        offer
        for offer in all_offers
        if _identity(offer) not in taken and (offer.exclusion_reason is not None or _kind(offer) not in good)
    ]
    affinity: dict[str, Any] = {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": _required(chosen, others)}
    }
    preferred = _preferred(chosen)
    if preferred:
        affinity["preferredDuringSchedulingIgnoredDuringExecution"] = preferred
    return affinity


def zones(offers: Iterable[Offer]) -> frozenset[str]:
    """The zones in which the offers are; those whose zone is not known add none."""
    return frozenset(offer.zone for offer in offers if offer.zone is not None)


def _required(chosen: Sequence[Offer], others: Sequence[Offer]) -> list[dict[str, Any]]:
    exact = _Exactness(others)
    terms = _Terms()
    for offer in chosen:
        if offer.node is None:
            terms.add_profile_term(_profile_term(offer, others))
            continue
        for labels in offer.selector_labels:
            if exact.of(frozenset(labels.items())):
                terms.add(frozenset(labels.items()))
    for offer in chosen:
        if offer.node is not None and not terms.covers(offer):
            pairs = _narrowed(offer, exact) or _hostname(offer, others)
            if pairs is None:
                terms.node_names.append(offer.node)
            else:
                terms.add(pairs)
    return [
        *terms.profile_terms,
        *({"matchExpressions": [_in(key, values)]} for key, values in terms.singles.items()),
        *({"matchExpressions": [_in(key, [value]) for key, value in sorted(pairs)]} for pairs in terms.sets),
        *({"matchFields": [_in("metadata.name", [name])]} for name in terms.node_names),
    ]


def _preferred(chosen: Sequence[Offer]) -> list[dict[str, Any]]:
    """Weights by size; nothing where all that fit have one size.

    A node matches one entry at most, else its weights would add up to more than those of a smaller GPU.
    """
    sizes = sorted({offer.gpu.usable_bytes for offer in chosen if offer.gpu.usable_bytes is not None})
    if len(sizes) < 2:
        return []
    entries = []
    ranked = sizes[:MAXIMUM_PREFERENCES]
    for rank, size in enumerate(ranked):
        group = [offer for offer in chosen if offer.gpu.usable_bytes == size]
        others = [offer for offer in chosen if offer.gpu.usable_bytes != size]
        weight = 100 - 99 * rank // (len(ranked) - 1)
        entries += [{"weight": weight, "preference": term} for term in _disjoint_terms(group, others)]
    return entries


def _disjoint_terms(group: Sequence[Offer], others: Sequence[Offer]) -> list[dict[str, Any]]:
    exact = _Exactness(others)
    terms = _Terms()
    for offer in group:
        if offer.node is None or terms.covers(offer):
            continue
        alone = (frozenset(labels.items()) for labels in offer.selector_labels if len(labels) == 1)
        pairs = next((pairs for pairs in alone if exact.of(pairs)), None) or _hostname(offer, others)
        if pairs is None:
            terms.node_names.append(offer.node)
        else:
            terms.add(pairs)
    written: list[dict[str, Any]] = []
    excluded: list[dict[str, Any]] = []
    for key, values in terms.singles.items():
        written.append({"matchExpressions": [_in(key, values), *excluded]})
        excluded.append(_not_in(key, values))
    for offer in group:
        if offer.node is None:
            term = _profile_term(offer, others)
            term["matchExpressions"] += excluded
            if terms.node_names:
                named = [_not_in("metadata.name", [name]) for name in terms.node_names]
                term["matchFields"] = [*term.get("matchFields", []), *named]
            if term not in written:
                written.append(term)
    for name in terms.node_names:
        term = {"matchFields": [_in("metadata.name", [name])]}
        written.append({**term, "matchExpressions": list(excluded)} if excluded else term)
    return written


def _profile_term(offer: Offer, others: Sequence[Offer]) -> dict[str, Any]:
    """The profile's own labels, less what does not fit but has them too: profiles with a further label, and nodes."""
    labels = dict(offer.selector_labels[0]) if offer.selector_labels else dict(offer.labels)
    expressions = [_in(key, [value]) for key, value in sorted(labels.items())]
    excluded: dict[str, set[str]] = {}
    nameless = []
    for other in others:
        if not _matches(frozenset(labels.items()), other):
            continue
        if other.node is None:
            further = sorted(key for key in other.labels if key not in labels and key not in offer.labels)
            differing = sorted(key for key in other.labels if other.labels[key] != offer.labels.get(key))
            key = next(iter(further or differing), None)
            if key is not None:
                excluded.setdefault(key, set()).add(other.labels[key])
        elif other.labels.get(HOSTNAME):
            excluded.setdefault(HOSTNAME, set()).add(other.labels[HOSTNAME])
        else:
            nameless.append(other.node)
    expressions += [_not_in(key, values) for key, values in sorted(excluded.items())]
    fields = [_not_in("metadata.name", [name]) for name in sorted(nameless)]
    return {"matchExpressions": expressions, **({"matchFields": fields} if fields else {})}


def _narrowed(offer: Offer, exact: _Exactness) -> _Pairs | None:
    """The GPU's labels with one more that sets the node apart from all that do not fit."""
    for labels in offer.selector_labels:
        for key in _NARROWING:
            if key in offer.labels and key not in labels:
                pairs = frozenset([*labels.items(), (key, offer.labels[key])])
                if exact.of(pairs):
                    return pairs
    return None


def _hostname(offer: Offer, others: Sequence[Offer]) -> _Pairs | None:
    """The host name as a label; None if the node has none of its own."""
    name = offer.labels.get(HOSTNAME)
    if not name or any(other.labels.get(HOSTNAME) == name for other in others):
        return None
    return frozenset([(HOSTNAME, name)])


class _Exactness:
    """Whether labels stand on no offer that they must not select; remembered, since nodes share labels."""

    def __init__(self, others: Sequence[Offer]) -> None:
        self._others = others
        self._known: dict[_Pairs, bool] = {}

    def of(self, pairs: _Pairs) -> bool:
        known = self._known.get(pairs)
        if known is None:
            known = bool(pairs) and not any(_matches(pairs, other) for other in self._others)
            self._known[pairs] = known
        return known


def _matches(pairs: _Pairs, offer: Offer) -> bool:
    return all(offer.labels.get(key) == value for key, value in pairs)


def _order(offer: Offer) -> tuple[int, str, str, str]:
    return offer.gpu.usable_bytes or 0, offer.node or "", offer.profile or "", offer.zone or ""


def _identity(offer: Offer) -> tuple[str | None, str | None, str | None, str]:
    return offer.node, offer.profile, offer.zone, offer.resource_name


def _kind(offer: Offer) -> tuple[object, ...]:
    """All of a GPU that decides whether a run fits it."""
    gpu = offer.gpu
    return gpu.vendor, gpu.product, gpu.usable_bytes, gpu.compute_capability, gpu.driver_cuda


def _in(key: str, values: Iterable[str]) -> dict[str, Any]:
    return {"key": key, "operator": "In", "values": sorted(values)}


def _not_in(key: str, values: Iterable[str]) -> dict[str, Any]:
    return {"key": key, "operator": "NotIn", "values": sorted(values)}
