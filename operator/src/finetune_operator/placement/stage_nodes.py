"""Nodes that the pods of the CPU stages may use by their node selector, terms and tolerations.

These rules never restrict the search for a GPU. They only matter here because the stages share volumes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from finetune_operator.api.pod_merge import NodeRules
from finetune_operator.placement.constraints import NodeTest, locations, volume_reach
from finetune_operator.placement.storage import StorageClass
from finetune_operator.sizing.gpus.gpu import Offer
from finetune_operator.sizing.gpus.node_terms import Requirement, holds, satisfies
from finetune_operator.sizing.gpus.nodes import HOSTNAME, KEPT_LABELS, ZONE_KEYS, NodeRecord
from finetune_operator.sizing.gpus.offers import eligible, lasts, tolerates


def shared_offers(
    rules: Sequence[NodeRules], offers: Sequence[Offer], storage_class: StorageClass | None
) -> tuple[Offer, ...]:
    """The offers whose node or zone the CPU stages may use as well, if the new workspace binds them to it.

    `rules` are those of the CPU stages. An offer without a known zone may suit.
    """
    match volume_reach(storage_class):
        case "Node":
            return tuple(offer for offer in offers if all(eligible(offer, each) is None for each in rules))
        case "Zone":
            return tuple(offer for offer in offers if all(_zone_suits(each, offer.zone) for each in rules))
    return tuple(offers)


def apart_message(
    rules: Sequence[NodeRules], offers: Sequence[Offer], storage_class: StorageClass | None
) -> str:
    """Explain that PREPARE and MERGE may not run where the suitable GPUs are, so that no volume serves all stages."""
    place = "node" if volume_reach(storage_class) == "Node" else "zone"
    name = "" if storage_class is None else f" of class {storage_class.name}"
    fields = sorted(
        {label.field for each in rules for label in each.labels}
        | {given.field for each in rules for given in each.terms}
    )
    return (
        f"PREPARE and MERGE must be allowed in the {place} of a suitable GPU ({locations(offers)}), because a workspace"
        f"{name} stays in the {place} of its first pod; their node rules exclude it ({', '.join(fields) or 'tolerations'}); "
        "change these, or set a class in workspace.storageClassName that every node can use"
    )


def node_test(rules: NodeRules, offers: Iterable[Offer]) -> NodeTest:
    """Return a function that tests whether a CPU stage may use a node, if it tolerates the taints of GPU nodes.

    `offers` are those of all GPU nodes. The operator does not know the own labels of other nodes (`sizing.gpus.nodes`),
    so it assumes that they match.
    """
    having = {offer.node for offer in offers}
    return lambda node: _labels_suit(rules, node) and (node.name in having or _taints_suit(rules, node))


def _labels_suit(rules: NodeRules, node: NodeRecord) -> bool:
    labels = {HOSTNAME: node.name, **node.labels}
    complete = any(key not in KEPT_LABELS for key in node.labels)

    def may_hold(item: Requirement) -> bool:
        known = complete or item.key in labels or item.key in KEPT_LABELS
        return not known or holds(item, labels)

    return satisfies(rules, may_hold)


def _taints_suit(rules: NodeRules, node: NodeRecord) -> bool:
    return all(
        any(tolerates(toleration, taint) for toleration in rules.tolerations)
        for taint in node.taints
        if lasts(taint)
    )


def _zone_suits(rules: NodeRules, zone: str | None) -> bool:
    labels = {} if zone is None else dict.fromkeys(ZONE_KEYS, zone)
    return satisfies(rules, lambda item: item.key not in labels or holds(item, labels))
