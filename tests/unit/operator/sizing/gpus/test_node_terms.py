from __future__ import annotations

import pytest
from finetune_operator.api.pod_merge import NodeRules, SelectedLabel, SelectedTerms
from finetune_operator.api.pods import NodeTerm
from finetune_operator.sizing.gpus.node_terms import Requirement, describe_requirement, holds, satisfies


@pytest.mark.parametrize(
    ("operator", "wanted", "found", "expected"),
    [
        ("In", ("1", "2"), "2", True),
        ("In", ("1",), None, False),
        ("NotIn", ("1",), "1", False),
        ("NotIn", ("1",), None, True),
        ("Exists", (), "", True),
        ("Exists", (), None, False),
        ("DoesNotExist", (), None, True),
        ("DoesNotExist", (), "1", False),
        ("Gt", ("9",), "10", True),
        ("Gt", ("10",), "10", False),
        ("Lt", ("9",), "-10", True),
        ("Lt", ("9",), "x", False),
        ("Gt", ("9",), "1_0", False),
        ("Gt", ("1", "2"), "3", False),
        ("Gt", ("1",), None, False),
        ("Novel", ("1",), "1", False),
    ],
)
def test_operators_have_the_schedulers_meaning(
    operator: str, wanted: tuple[str, ...], found: str | None, *, expected: bool
) -> None:
    node = {} if found is None else {"key": found}
    assert holds(Requirement("key", operator, wanted), node) is expected


def term(*expressions: tuple[str, str, list[str]]) -> NodeTerm:
    items = [{"key": key, "operator": operator, "values": values} for key, operator, values in expressions]
    return NodeTerm.model_validate({"matchExpressions": items})


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ({"pool": "a", "arch": "amd64", "disk": "ssd"}, True),
        ({"pool": "a", "arch": "arm64", "disk": "ssd"}, True),
        ({"pool": "b", "arch": "amd64", "disk": "ssd"}, False),
        ({"pool": "a", "arch": "riscv", "disk": "ssd"}, False),
        ({"pool": "a", "arch": "amd64"}, False),
    ],
)
def test_labels_and_one_term_of_every_set_must_hold(node: dict[str, str], *, expected: bool) -> None:
    arch = (term(("arch", "In", ["amd64"])), term(("arch", "In", ["arm64"]), ("pool", "Exists", [])))
    rules = NodeRules(
        labels=(SelectedLabel("pool", "a", "podTemplate.nodeSelector"),),
        terms=(SelectedTerms(arch, "x"), SelectedTerms((term(("disk", "Exists", [])),), "y")),
    )
    assert satisfies(rules, lambda item: holds(item, node)) is expected


def test_a_requirement_is_described_briefly() -> None:
    assert describe_requirement(Requirement("zone", "In", ("a", "b"))) == "zone in a, b"
    assert describe_requirement(Requirement("pool", "Exists")) == "pool Exists"
