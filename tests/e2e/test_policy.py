"""The chart's policy on a real API server, and the operator's own check where no admission policy is bound."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from typing import Any

import pytest
from devcluster import product
from devcluster.kubectl import Kubectl
from devcluster.provider import ProvidedCluster
from finetune_operator.api.policy import Limits, violations
from finetune_operator.api.spec import FineTuneJobSpec

from tests.support.e2e import jobs
from tests.support.e2e.namespaces import fresh_namespace
from tests.support.e2e.queues import wait_for
from tests.support.operator import make_spec
from tests.support.policy_specs import LIMITS, draw_spec

pytestmark = pytest.mark.cluster

SPECS = 400
REFUSED = re.compile(r'"(spec-[0-9]+)" is forbidden: ValidatingAdmissionPolicy .* denied request: (.*)$')


def manifest(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": spec,
    }


def dry_run(room: Kubectl, *documents: dict[str, Any]) -> tuple[set[str], dict[str, str]]:
    """The jobs that the API server accepts, and those that a policy refuses with its message. Nothing is stored."""
    done = room.run(
        "create",
        "--dry-run=server",
        "--validate=strict",
        "--filename=-",
        stdin="\n---\n".join(map(json.dumps, documents)),
    )
    found = [REFUSED.search(line) for line in done.stderr.splitlines()]
    refused = {each[1]: each[2] for each in found if each is not None}
    return set(re.findall("/(spec-[0-9]+) created", done.stdout)), refused


@pytest.fixture(scope="module")
def limited(operator: ProvidedCluster, kubectl: Kubectl) -> Iterator[Kubectl]:
    """A namespace whose jobs have every limit. The other namespaces have none."""
    with fresh_namespace(kubectl) as name:
        exception = {"namespaces": [name], "limits": LIMITS}
        product.install_chart(operator, {"policy": {"exceptions": [exception]}})
        room = kubectl.within(name)
        # The API server takes a moment to follow a new policy.
        wait_for(
            "the policy",
            seconds=60,
            holds=lambda: bool(dry_run(room, manifest("spec-0", make_spec(queueName="mine")))[1]),
        )
        yield room
        room("delete", "finetunejobs", "--all", "--wait=true")
        product.install_chart(operator)


def test_the_api_server_and_the_operator_agree_on_hundreds_of_specs(limited: Kubectl) -> None:
    draw = random.Random(20)  # noqa: S311 -- a seeded test
    specs = {f"spec-{number}": draw_spec(draw) for number in range(SPECS)}
    accepted, refused = dry_run(limited, *(manifest(name, spec) for name, spec in specs.items()))
    assert len(accepted) > SPECS / 10
    assert len(refused) > SPECS / 10
    assert accepted | set(refused) == set(specs)
    limits = Limits.model_validate(LIMITS)
    for name, spec in specs.items():
        found = violations(FineTuneJobSpec.parse(spec), limits)
        assert sorted(refused.get(name, "").split("; ")) == sorted(found or [""]), spec


def test_a_refusal_at_apply_names_field_bound_and_value(limited: Kubectl, namespace: str) -> None:
    job = manifest("spec-1", make_spec(queueName="gpus", podTemplate={"serviceAccountName": "admin"}))
    _, refused = dry_run(limited, job)
    message = "spec.podTemplate.serviceAccountName must be one of tuner, found admin"
    assert refused == {"spec-1": message}
    assert dry_run(limited.within(namespace), job) == ({"spec-1"}, {}), "another namespace has no limits"


@pytest.mark.full
def test_without_the_binding_the_operator_starts_nothing_until_the_policy_allows_it(
    limited: Kubectl, operator: ProvidedCluster
) -> None:
    (binding,) = limited("get", "validatingadmissionpolicybindings", "--output=name").split()
    limited("delete", binding)
    job = jobs.fine_tune_job("denied", resources={"priorityClassName": "high"})

    def created() -> bool:
        return limited.run("create", "--filename=-", stdin=json.dumps(job)).returncode == 0

    wait_for("the job without the binding", seconds=60, holds=created)
    found = jobs.until(
        limited, "denied", "the operator's refusal", seconds=60, holds=jobs.stalled("PolicyDenied")
    )
    message = product.condition(found, "Stalled")["message"]
    assert "spec.resources.priorityClassName must be one of batch, low, found high" in message
    assert "spec.queueName must be set, found none" in message
    assert limited.json("get", "jobs")["items"] == []
    assert limited.json("get", "persistentvolumeclaims")["items"] == []
    product.install_chart(operator)
    limited("wait", "job/denied-prepare-0", "--for=create", "--timeout=60s")
