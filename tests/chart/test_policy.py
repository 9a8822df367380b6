"""The chart renders a policy for each set of limits, bound to the namespaces that have it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_operator.api.policy import Limits, parse_policy
from finetune_operator.settings import parse_settings

from tests.support.chart import CHART, Manifest, only, render
from tests.support.repository import ROOT

POLICY = "ValidatingAdmissionPolicy"
BINDING = "ValidatingAdmissionPolicyBinding"
FULL = CHART / "ci/full-values.yaml"


def rendered(tmp_path: Path, **values: Any) -> list[Manifest]:
    """The objects of the chart with these values."""
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    return render("--values", str(file))


def variables(policy: Manifest) -> dict[str, str]:
    return {each["name"]: each["expression"] for each in policy["spec"]["variables"]}


def namespaces(binding: Manifest) -> list[dict[str, Any]]:
    selector = binding["spec"].get("matchResources", {}).get("namespaceSelector", {})
    found: list[dict[str, Any]] = selector.get("matchExpressions", [])
    assert all(each.pop("key") == "kubernetes.io/metadata.name" for each in found)
    return found


def test_without_limits_there_is_no_policy() -> None:
    assert not any(item["kind"].startswith(POLICY) for item in render())


def test_admission_can_be_left_to_the_operator(tmp_path: Path) -> None:
    policy = {
        "admission": False,
        "limits": {"gpus": 1},
        "exceptions": [{"namespaces": ["a"], "limits": {"gpus": 2}}],
    }
    objects = rendered(tmp_path, policy=policy)
    assert not any(item["kind"].startswith(POLICY) for item in objects)
    settings = parse_settings(only(objects, "ConfigMap", "-settings")["data"]["settings.json"])
    assert settings.job_policy.limits_of("a") == Limits(gpus=2)
    assert settings.job_policy.limits_of("b") == Limits(gpus=1)


def test_each_set_of_limits_is_bound_to_its_namespaces() -> None:
    objects = render("--values", str(FULL))
    names = [item["metadata"]["name"] for item in objects if item["kind"] == POLICY]
    assert len(names) == 2, "the exception without limits needs none"
    for name in names:
        binding = only(objects, BINDING, name.rpartition("-policy")[2] or "-policy")
        assert binding["spec"]["policyName"] == binding["metadata"]["name"]
        assert binding["spec"]["validationActions"] == ["Deny"]
    excepted = ["research", "free", "open"]
    assert namespaces(only(objects, BINDING, "-policy")) == [{"operator": "NotIn", "values": excepted}]
    assert namespaces(only(objects, BINDING, "-policy-0")) == [{"operator": "In", "values": ["research"]}]


def test_a_release_for_some_namespaces_judges_no_other_one(tmp_path: Path) -> None:
    objects = rendered(tmp_path, watchNamespaces=["team-a", "team-b"], policy={"limits": {"gpus": 1}})
    assert namespaces(only(objects, BINDING)) == [{"operator": "In", "values": ["team-a", "team-b"]}]


def test_only_new_jobs_are_judged_and_a_policy_that_fails_refuses() -> None:
    spec = only(render("--values", str(FULL)), POLICY, "-policy")["spec"]
    (rule,) = spec["matchConstraints"]["resourceRules"]
    assert rule["operations"] == ["CREATE"]
    assert (rule["apiGroups"], rule["resources"]) == (["finetune.dev"], ["finetunejobs"])
    assert spec["failurePolicy"] == "Fail"


def test_operator_and_policy_get_the_same_limits() -> None:
    objects = render("--values", str(FULL))
    document = json.loads(only(objects, "ConfigMap", "-settings")["data"]["settings.json"])["policy"]
    limits = parse_policy(document).limits
    text = variables(only(objects, POLICY, "-policy"))["limits"]
    given = json.loads(text.replace("dyn(", "").replace(")", ""))
    assert Limits.model_validate(given) == limits
    assert all(value is not None for value in limits.model_dump().values()), "the file has every limit"
    assert "queueNames" not in variables(only(objects, POLICY, "-policy-0"))["limits"], "null is no limit"


def test_schema_operator_and_page_know_the_same_limits() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())["definitions"]["limits"]["properties"]
    fields = {info.alias for info in Limits.model_fields.values()}
    rows = re.findall(r"^\| `([A-Za-z]+)` \|", (ROOT / "docs/tenancy.md").read_text(), re.MULTILINE)
    assert set(schema) == fields == set(rows)


def test_a_namespace_has_one_exception(tmp_path: Path) -> None:
    exception = {"namespaces": ["a"], "limits": {}}
    with pytest.raises(ValueError, match="must name each namespace once, found a more than once"):
        rendered(tmp_path, policy={"exceptions": [exception, exception]})
