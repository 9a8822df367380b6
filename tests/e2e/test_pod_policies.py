"""The policies of docs/pods.md on a real API server: each rejects a stage's pod, and accepts it with its pod defaults.

Nothing runs: the pods are only admitted, in a namespace that enforces the restricted Pod Security level.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml
from devcluster.kubectl import Kubectl
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.stages import WORK_STAGES, Stage
from finetune_operator.manifests.jobs import build_job
from finetune_operator.settings import TrainerSettings
from finetune_operator.sizing.hosts import HostNeeds

from tests.support.operator import make_job, make_spec
from tests.support.repository import ROOT

pytestmark = pytest.mark.cluster

HOST = HostNeeds("2", 8 * 2**30, "because", 2**28, 2**30)


def examples() -> dict[str, tuple[list[dict[str, Any]], dict[str, Any]]]:
    """Return the policy objects and the pod defaults of each section of docs/pods.md that has both."""
    found = {}
    for section in (ROOT / "docs/pods.md").read_text().split("\n### ")[1:]:
        blocks = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", section, flags=re.DOTALL)]
        policies = [block for block in blocks if "kind" in block]
        defaults = [block["trainer"]["podDefaults"] for block in blocks if "trainer" in block]
        if policies and defaults:
            found[section.splitlines()[0]] = (policies, defaults[0])
    return found


EXAMPLES = examples()
REFUSALS = ("must specify", "must be less than or equal to")


def with_service_account(kubectl: Kubectl, namespace: str) -> Kubectl:
    """Return kubectl in the namespace, once a controller has made the account that every pod needs."""
    room = kubectl.within(namespace)
    room("wait", "serviceaccount/default", "--for=create", "--timeout=30s")
    return room


def refusal(room: Kubectl, stage: Stage, defaults: dict[str, Any]) -> str:
    """Return the reason for which the API server rejects the pod of this stage, or "" if it admits it."""
    trainer = TrainerSettings(image="registry.example/trainer:1", pod_defaults=defaults)
    job = build_job(make_job(), FineTuneJobSpec.parse(make_spec()), stage, 0, {}, trainer, host=HOST)
    template = job["spec"]["template"]
    metadata = {**template["metadata"], "name": f"demo-{stage.slug}"}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
    done = room.run("create", "--dry-run=server", "--validate=strict", "--filename=-", stdin=json.dumps(pod))
    return "" if done.returncode == 0 else done.stderr


def test_the_documentation_has_an_example_for_both_kinds_of_policy() -> None:
    kinds = {policy["kind"] for policies, _ in EXAMPLES.values() for policy in policies}
    assert kinds == {"ResourceQuota", "LimitRange"}


@pytest.mark.parametrize(("policies", "defaults"), EXAMPLES.values(), ids=EXAMPLES.keys())
def test_documented_pod_defaults_satisfy_the_policy_of_their_section(
    kubectl: Kubectl, namespace: str, policies: list[dict[str, Any]], defaults: dict[str, Any]
) -> None:
    room = with_service_account(kubectl, namespace)
    for policy in policies:
        del policy["metadata"]["namespace"]
        room.apply(policy)
        if policy["kind"] == "ResourceQuota":
            # The quota controller makes a new quota effective.
            name = policy["metadata"]["name"]
            room("wait", f"resourcequota/{name}", "--for=jsonpath={.status.hard}", "--timeout=30s")
    for stage in WORK_STAGES:
        assert any(words in refusal(room, stage, {}) for words in REFUSALS), stage
        assert refusal(room, stage, defaults) == "", stage


@pytest.mark.parametrize(
    "security",
    [
        {},
        {"ids": "Assigned"},
        {
            "runAsUser": 1000650000,
            "fsGroup": 1000650000,
            "supplementalGroups": [5000],
            "seccompProfile": {"type": "Localhost", "localhostProfile": "profiles/trainer.json"},
            "appArmorProfile": {"type": "RuntimeDefault"},
            "seLinuxOptions": {"type": "container_t", "level": "s0:c26,c5"},
        },
    ],
    ids=["none", "assigned", "all"],
)
def test_pods_meet_the_restricted_level_with_every_addition(
    kubectl: Kubectl, namespace: str, security: dict[str, Any]
) -> None:
    room = with_service_account(kubectl, namespace)
    for stage in WORK_STAGES:
        assert refusal(room, stage, {"securityContext": security}) == ""
