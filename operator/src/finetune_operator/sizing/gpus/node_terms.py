"""Requirements on a node's labels, with the meaning that the scheduler gives them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from finetune_operator.api.pod_merge import NodeRules
from finetune_operator.api.pods import NodeRequirement

_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")


@dataclass(frozen=True)
class Requirement:
    """One requirement of a term. `field` is True if `key` names a field of the node, not a label."""

    key: str
    operator: str
    values: tuple[str, ...] = ()
    field: bool = False


Term = tuple[Requirement, ...]
"""Requirements that must all hold. A term without requirements matches nothing."""


def holds(item: Requirement, labels: Mapping[str, str]) -> bool:
    """Apply the rules of k8s.io/component-helpers/scheduling/corev1/nodeaffinity. An unknown operator never holds."""
    found = labels.get(item.key)
    match item.operator:
        case "In":
            return found is not None and found in item.values
        case "NotIn":
            return found is None or found not in item.values
        case "Exists":
            return found is not None
        case "DoesNotExist":
            return found is None
        case "Gt" | "Lt":
            return _compares(item, found)
    return False


def satisfies(rules: NodeRules, test: Callable[[Requirement], bool]) -> bool:
    """Return whether `test` holds for every selected label and, of each set of terms, for one whole term."""
    return all(test(Requirement(label.key, "In", (label.value,))) for label in rules.labels) and all(
        any(all(test(pod_requirement(item)) for item in term.match_expressions) for term in given.terms)
        for given in rules.terms
    )


def pod_requirement(item: NodeRequirement) -> Requirement:
    """A requirement of a pod's settings."""
    return Requirement(item.key, item.operator, item.values)


def describe_requirement(item: Requirement) -> str:
    """Describe one requirement briefly, for messages."""
    words = {"In": "in", "NotIn": "not in", "Gt": ">", "Lt": "<"}
    if item.operator in words:
        return f"{item.key} {words[item.operator]} {', '.join(item.values)}"
    return f"{item.key} {item.operator}"


def _compares(item: Requirement, found: str | None) -> bool:
    if found is None or len(item.values) != 1:
        return False
    if not (_INTEGER.fullmatch(found) and _INTEGER.fullmatch(item.values[0])):
        return False
    left, right = int(found), int(item.values[0])
    return left > right if item.operator == "Gt" else left < right
