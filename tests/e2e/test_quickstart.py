"""The quickstart on a real cluster: from YAML and a real pretrained model to a merged model that answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from devcluster import product
from devcluster.gpus import Gpus
from devcluster.kubectl import Kubectl
from devcluster.provider import ProvidedCluster

from tests.support.e2e import quickstart
from tests.support.e2e.pod_departures import DepartureWatch

pytestmark = [pytest.mark.cluster, pytest.mark.model]

NAMESPACE = "quickstart-test"
KEEP_WORKSPACE = json.dumps({"spec": {"lifecycle": {"keepWorkspace": "Always"}}})


@dataclass
class ClusterRun:
    """The last status, pods, artifacts and workspace files of the job."""

    status: dict[str, Any]
    pods_seen: set[str]
    pods_left: list[dict[str, Any]]
    artifacts: Path
    workspace: Path
    operators_deleted: list[str] = field(default_factory=list)


class OperatorKiller:
    """Deletes the operator's pods once in each stage, after its first progress."""

    def __init__(self, kubectl: Kubectl) -> None:
        self._kubectl = kubectl.within(product.SYSTEM_NAMESPACE)
        self.stages: list[str] = []

    def __call__(self, job: dict[str, Any]) -> None:
        progress = job.get("status", {}).get("progress") or {}
        stage = progress.get("stage")
        if stage and stage not in self.stages:
            self.stages.append(stage)
            self._kubectl("delete", "pods", "--selector=app.kubernetes.io/component=operator", "--wait=false")


@pytest.fixture(scope="module")
def cluster_run(
    operator: ProvidedCluster, kubectl: Kubectl, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ClusterRun]:
    """The quickstart applied to the cluster, with the operator's pods deleted in each stage."""
    product.create_namespace(kubectl, NAMESPACE)
    scoped = kubectl.within(NAMESPACE)
    scoped.apply(product.claim("quickstart", "4Gi"))
    with product.volume_pod(scoped, "quickstart", operator.trainer_image) as pod:
        for folder in ("models", "datasets"):
            product.fill_volume(scoped, pod, quickstart.VOLUME / folder, folder)
    killer = OperatorKiller(kubectl)
    with DepartureWatch(scoped.kubeconfig, NAMESPACE) as departing:
        scoped("apply", "--filename", str(quickstart.JOB))
        # A later test compares the trained weights with the merged ones.
        scoped("patch", "finetunejob", "airports", "--type=merge", f"--patch={KEEP_WORKSPACE}")
        job = product.follow(scoped, "airports", seconds=1200, seen=killer)
        pods_seen = departing.pods_seen()
    pods_left = scoped.json("get", "pods")["items"]
    artifacts = tmp_path_factory.mktemp("artifacts")
    workspace = tmp_path_factory.mktemp("workspace")
    with product.volume_pod(scoped, "quickstart", operator.trainer_image) as pod:
        product.read_volume(scoped, pod, "outputs/airports", artifacts)
    with product.volume_pod(scoped, "airports-workspace", operator.trainer_image) as pod:
        for folder in ("model", "train"):
            product.read_volume(scoped, pod, folder, workspace / folder)
    yield ClusterRun(job["status"], pods_seen, pods_left, artifacts, workspace, killer.stages)
    kubectl("delete", "namespace", NAMESPACE, "--timeout=120s")


def test_operator_restarts_in_each_stage_change_nothing(cluster_run: ClusterRun) -> None:
    assert cluster_run.operators_deleted == ["Prepare", "Train", "Merge"]
    attempts = [(a["stage"], a["attempt"], a["outcome"]) for a in cluster_run.status["attempts"]]
    assert attempts == [("Prepare", 0, "Succeeded"), ("Train", 0, "Succeeded"), ("Merge", 0, "Succeeded")]
    assert len(cluster_run.pods_seen) == 3, "one pod for each stage"
    assert cluster_run.pods_left == []


def test_the_gain_is_proven_on_held_out_rows(cluster_run: ClusterRun) -> None:
    evaluation = cluster_run.status["evaluation"]
    assert evaluation["verdict"] == "Improved"
    assert float(evaluation["interval"][1]) < 0


def test_the_status_holds_the_plan_with_memory_and_reasons(cluster_run: ClusterRun) -> None:
    plan = cluster_run.status["plan"]
    assert plan["training"]["microBatchSize"] == 4, "values of the spec are kept"
    assert plan["training"]["gradientAccumulationSteps"] == 1
    assert plan["gpu"]["product"] == Gpus().product.replace("-", " ")
    memory = plan["memory"]
    assert memory["lowBytes"] <= memory["deviceBytes"] <= memory["highBytes"] <= plan["gpu"]["usableBytes"]
    shown = sum(term["bytes"] for term in memory["terms"])
    assert shown == memory["deviceBytes"], "the terms of the bottleneck and of the device"
    assert all(choice["reason"] for choice in plan["choices"])


def test_labels_are_shown_in_the_status(cluster_run: ClusterRun) -> None:
    learned = cluster_run.status["dataset"]["example"]["learned"]
    assert learned.startswith('{"iata"')
    assert learned.endswith("<|im_end|>")


def test_the_artifact_is_complete_and_not_quantized(cluster_run: ClusterRun) -> None:
    quickstart.assert_complete_and_not_quantized(cluster_run.artifacts / "merged")


def test_the_merged_model_answers_unseen_rows_exactly(cluster_run: ClusterRun) -> None:
    found = quickstart.exact_answers(cluster_run.artifacts / "merged", quickstart.ROWS)
    assert found >= quickstart.ROWS // 2


def test_the_base_model_answers_none_or_few() -> None:
    assert quickstart.exact_answers(quickstart.BASE_MODEL, 8) <= 1


def test_merged_equals_trained_on_held_out_rows(cluster_run: ClusterRun) -> None:
    quickstart.assert_merged_equals_trained(cluster_run.workspace, cluster_run.artifacts / "merged")
