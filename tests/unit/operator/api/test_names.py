"""The forms that a child object may have, and the same patterns in the CRD."""

from __future__ import annotations

import re
from typing import Any

import pytest
from finetune_operator.api import names
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.validation import check
from finetune_operator.errors import InvalidSpecError

from tests.support.crd_schema import root_schema, walk
from tests.support.operator import make_spec

SPEC = dict(walk(root_schema()["properties"]["spec"], "spec"))
RULES = {
    path: " ".join(rule["rule"] for rule in field.get("x-kubernetes-validations", []))
    for path, field in SPEC.items()
}


@pytest.mark.parametrize(
    ("pattern", "valid", "invalid"),
    [
        (
            names.SUBDOMAIN,
            ["a", "a-b.c1", "9"],
            ["", "a..b", ".a", "a.", "-a", "a-.b", "A", "a_b", "a b", "ä"],
        ),
        (names.DATA_KEY, ["a", ".a", "a..b", "_", "A-1.txt"], ["", ".", "..", "..a", "a/b", "a b", "ä"]),
        (
            names.QUALIFIED_NAME,
            ["a", "A_b.c", "example.com/a", "a/b"],
            ["", "a b", "/a", "a/", "a/b/c", "Example.com/a", "-a", "a-", "k" * 64, "a..b/c"],
        ),
        (names.ANNOTATION_KEY, ["Example.com/a"], ["Exa mple.com/a", "k" * 64, "k" * 300]),
        (names.LABEL_VALUE, ["", "a", "A_b.c-1"], ["-a", "a b", "a/b", "ä"]),
        (names.RESOURCE_NAME, ["nvidia.com/gpu"], ["gpu", "a..b/c", "a/b/c", "nvidia.com/" + "g" * 64]),
    ],
)
def test_forms_are_those_of_kubernetes(pattern: str, valid: list[str], invalid: list[str]) -> None:
    assert [text for text in valid if re.fullmatch(pattern, text) is None] == []
    assert [text for text in invalid if re.fullmatch(pattern, text) is not None] == []


def test_the_crd_has_the_same_patterns() -> None:
    for path, field in SPEC.items():
        last = path.rpartition(".")[2]
        if path == "spec.output.destinations[].name":
            continue  # no name of an object
        if last in {"claimName", "name", "serviceAccountName", "storageClassName", "existingClaim"} or (
            last.endswith("ClassName")
        ):
            assert field["pattern"] == names.SUBDOMAIN, path
        if last == "key" and path.rpartition(".")[0].endswith("Ref"):
            assert field["pattern"] == names.DATA_KEY, path
        if path.endswith(("tolerations[].key", "matchExpressions[].key")):
            assert field["pattern"] == names.QUALIFIED_NAME, path
        if path.endswith(("tolerations[].value", "values[]", "abels{}", "odeSelector{}")):
            assert field["pattern"] == names.LABEL_VALUE, path
        if last in {"labels", "objectLabels", "nodeSelector"}:
            assert f"key.matches('{names.QUALIFIED_NAME}')" in RULES[path], path
        if last in {"annotations", "objectAnnotations"}:
            assert f"key.matches('{names.ANNOTATION_KEY}')" in RULES[path], path
            assert f"bytes(self[key]).size() <= {names.MAXIMUM_ANNOTATION_BYTES}" in RULES[path], path
    assert SPEC["spec.resources.gpuResourceName"]["pattern"] == names.RESOURCE_NAME


INVALID: list[dict[str, Any]] = [
    {"output": {"destination": {"persistentVolumeClaim": {"claimName": "a..b"}}}},
    {"dataset": {"source": {"configMap": {"name": "a", "key": ".."}}}},
    {"podTemplate": {"labels": {"a b": "c"}}},
    {"podTemplate": {"labels": {"job-name": "c"}}},
    {"podTemplate": {"merge": {"labels": {"controller-uid": "c"}}}},
    {"podTemplate": {"annotations": {"k" * 300: "c"}}},
    {"podTemplate": {"annotations": {"k": "\U0001f600" * 1025}}},
    {"podTemplate": {"objectAnnotations": {"a/b/c": "d"}}},
    {"podTemplate": {"tolerations": [{"key": "a b", "operator": "Exists"}]}},
    {"podTemplate": {"tolerations": [{"key": "a", "value": "b c"}]}},
    {"podTemplate": {"nodeSelector": {f"{'p' * 254}/a": "b"}}},
    {
        "podTemplate": {
            "nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "In", "values": ["b c"]}]}]
        }
    },
    {
        "podTemplate": {
            "nodeSelectorTerms": [
                {"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["9" * 19]}]}
            ]
        }
    },
    {"podTemplate": {"ephemeralStorage": "2Pi"}},
    {"podTemplate": {"cpuLimit": "101k"}},
    {"resources": {"gpuResourceName": "requests.nvidia.com/gpu"}},
    {"resources": {"gpuResourceName": "kubernetes.io/gpu"}},
    {"resources": {"gpuResourceName": f"{'p' * 245}/gpu"}},
    {"resources": {"train": {"memory": "100000000000000000000000000P"}}},
    {"resources": {"train": {"cpu": "1000000"}}},
    {"workspace": {"size": "2000Ti"}},
]


@pytest.mark.parametrize("changes", INVALID, ids=str)
def test_a_spec_whose_children_would_be_refused_is_invalid(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidSpecError):
        check("demo", FineTuneJobSpec.parse(make_spec(**changes)))
