"""Node affinity for the GPUs that fit: terms over labels, exact for all known nodes.

Every node that fits matches a required term, and no other known node does. A term names a GPU by the labels that
identified it. A GPU profile is named by its own labels only, because an autoscaler knows no other labels before the node
exists. If a label is also on a node that does not fit, a further label narrows the term, and at last the node's name.
Memory labels that only a running node has (`nvidia.com/gpu.memory`) are never used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from finetune_operator.sizing.gpus.gpu import Offer
from finetune_operator.sizing.gpus.nodes import HOSTNAME, INSTANCE_TYPE_KEYS

MAXIMUM_PREFERENCES = 10
"""Sizes that get different weights; Kubernetes' weights run from 100 to 1."""

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
"""Labels that may distinguish two nodes with one GPU, those that autoscalers know first."""

_Pairs = frozenset[tuple[str, str]]


@dataclass
class _Terms:
    """Collected terms: single pairs are grouped by key, and each set of pairs is a separate term."""

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
    """Return the value of `spec.affinity.nodeAffinity` for a pod that may run only on `fitting`.

    `all_offers` are all offers of the resource. An excluded offer with the same GPU as a fitting one is left to the
    scheduler: only the pod's tolerations or node selector can exclude it. The smallest GPUs are preferred.
    Raises ValueError if `fitting` is empty.
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
    """Return the zones of the offers; an offer without a known zone adds none."""
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
    """Return weights by size; nothing if all fitting offers have one size.

    A node matches at most one entry. Otherwise its weights could add up to more than those of a smaller GPU.
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
    """Return the profile's labels, without profiles and nodes that have them too but do not fit."""
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
    """Return the GPU's labels with one more that no node has that does not fit; None if there is none."""
    for labels in offer.selector_labels:
        for key in _NARROWING:
            if key in offer.labels and key not in labels:
                pairs = frozenset([*labels.items(), (key, offer.labels[key])])
                if exact.of(pairs):
                    return pairs
    return None


def _hostname(offer: Offer, others: Sequence[Offer]) -> _Pairs | None:
    """Return the host name as a label; None if the node has no unique one."""
    name = offer.labels.get(HOSTNAME)
    if not name or any(other.labels.get(HOSTNAME) == name for other in others):
        return None
    return frozenset([(HOSTNAME, name)])


class _Exactness:
    """Checks that labels select none of the other offers; results are cached, because nodes share labels."""

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
    """Return all facts of a GPU that decide whether a run fits it."""
    gpu = offer.gpu
    return gpu.vendor, gpu.product, gpu.usable_bytes, gpu.compute_capability, gpu.driver_cuda


def _in(key: str, values: Iterable[str]) -> dict[str, Any]:
    return {"key": key, "operator": "In", "values": sorted(values)}


def _not_in(key: str, values: Iterable[str]) -> dict[str, Any]:
    return {"key": key, "operator": "NotIn", "values": sorted(values)}
