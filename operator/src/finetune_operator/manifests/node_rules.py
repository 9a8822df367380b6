"""Adds a pod's own terms to the node affinity that keeps a stage near its GPU and its volume."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

from finetune_operator.api.pod_merge import NodeRules

_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


def with_own_terms(affinity: Mapping[str, Any] | None, rules: NodeRules) -> dict[str, Any] | None:
    """Return an affinity under which a node satisfies one term of `affinity` and one of each of the pod's own sets.

    Kubernetes allows a single list of alternatives. So each combination becomes one term, and preferences stay as they
    are. None means that there is nothing to require or to prefer.
    """
    if not rules.terms:
        return dict(affinity) if affinity else None
    sets: list[list[Mapping[str, Any]]] = [
        [term.model_dump(mode="json", by_alias=True, exclude_defaults=True) for term in given.terms]
        for given in rules.terms
    ]
    node = dict((affinity or {}).get("nodeAffinity") or {})
    existing = (node.get(_REQUIRED) or {}).get("nodeSelectorTerms")
    if existing:
        sets.insert(0, existing)
    node[_REQUIRED] = {"nodeSelectorTerms": [_joined(terms) for terms in product(*sets)]}
    return {**(affinity or {}), "nodeAffinity": node}


def _joined(terms: tuple[Mapping[str, Any], ...]) -> dict[str, Any]:
    joined: dict[str, Any] = {}
    for term in terms:
        for member, requirements in term.items():
            joined[member] = [*joined.get(member, ()), *requirements]
    return joined
