"""Adds to the affinity that keeps a stage near its GPU and its volume: a pod's own terms, and the other pods of TRAIN."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

from finetune_operator.api.plan import Layout
from finetune_operator.api.pod_merge import NodeRules
from finetune_operator.api.stages import ATTEMPT_LABEL, JOB_LABEL, STAGE_LABEL
from finetune_operator.settings import TrainerSettings
from finetune_operator.sizing.gpus.nodes import HOSTNAME

_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
_STRONGEST = 100
"""The largest weight that Kubernetes allows."""


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


def near_each_other(
    affinity: Mapping[str, Any] | None, labels: Mapping[str, str], layout: Layout, trainer: TrainerSettings
) -> dict[str, Any] | None:
    """Return `affinity` with a preference that pods with these `labels` share a node, or else a topology domain.

    The administrator's keys name the domains, such as a rack or an NVLink domain, the closest first.
    """
    if layout.nodes == 1:
        return None if affinity is None else dict(affinity)
    own = {key: labels[key] for key in (JOB_LABEL, STAGE_LABEL, ATTEMPT_LABEL)}
    keys = (HOSTNAME, *trainer.topology_keys)
    preferred = [
        {
            "weight": _STRONGEST - index,
            "podAffinityTerm": {"labelSelector": {"matchLabels": own}, "topologyKey": key},
        }
        for index, key in enumerate(keys)
    ]
    together = {"preferredDuringSchedulingIgnoredDuringExecution": preferred}
    return {**(affinity or {}), "podAffinity": together}


def _joined(terms: tuple[Mapping[str, Any], ...]) -> dict[str, Any]:
    joined: dict[str, Any] = {}
    for term in terms:
        for member, requirements in term.items():
            joined[member] = [*joined.get(member, ()), *requirements]
    return joined
