from __future__ import annotations

from typing import Any

from finetune_operator.api.pod_merge import NodeRules, SelectedTerms
from finetune_operator.api.pods import NodeTerm
from finetune_operator.manifests.node_rules import with_own_terms

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"


def expression(key: str) -> dict[str, Any]:
    return {"key": key, "operator": "Exists"}


def rules(*sets: list[str]) -> NodeRules:
    """One set of terms for each list of keys, one term for each key."""
    return NodeRules(
        terms=tuple(
            SelectedTerms(
                tuple(NodeTerm.model_validate({"matchExpressions": [expression(key)]}) for key in keys), "x"
            )
            for keys in sets
        )
    )


def gpu_affinity() -> dict[str, Any]:
    terms = [{"matchExpressions": [expression("gpu")]}, {"matchFields": [{"key": "metadata.name"}]}]
    return {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": terms}, PREFERRED: [{"weight": 1}]}}


def test_without_own_terms_the_affinity_stays_as_it_is() -> None:
    assert with_own_terms(gpu_affinity(), NodeRules()) == gpu_affinity()
    assert with_own_terms(None, NodeRules()) is None


def test_own_terms_alone_are_required() -> None:
    found = with_own_terms(None, rules(["a", "b"]))
    terms = [{"matchExpressions": [expression(key)]} for key in ("a", "b")]
    assert found == {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": terms}}}


def test_own_terms_only_narrow_the_gpus_that_fit() -> None:
    found = with_own_terms(gpu_affinity(), rules(["a", "b"], ["c"]))
    assert found is not None
    name = {"key": "metadata.name"}
    assert found["nodeAffinity"][REQUIRED]["nodeSelectorTerms"] == [
        {"matchExpressions": [expression("gpu"), expression("a"), expression("c")]},
        {"matchExpressions": [expression("gpu"), expression("b"), expression("c")]},
        {"matchFields": [name], "matchExpressions": [expression("a"), expression("c")]},
        {"matchFields": [name], "matchExpressions": [expression("b"), expression("c")]},
    ]
    assert found["nodeAffinity"][PREFERRED] == [{"weight": 1}]
