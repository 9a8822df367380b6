"""The quickstart on a real cluster and without one: a real pretrained model from YAML to a merged model that answers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from devcluster import product
from devcluster.gpus import Gpus
from devcluster.kubectl import Kubectl
from devcluster.layout import REPOSITORY
from devcluster.provider import ProvidedCluster

from tests.e2e.conftest import QUICKSTART_VOLUME
from tests.support.e2e.pod_departures import DepartureWatch

pytestmark = [pytest.mark.cluster, pytest.mark.model]

QUICKSTART = REPOSITORY / "examples" / "quickstart.yaml"
BASE_MODEL = QUICKSTART_VOLUME / "models" / "SmolLM2-135M-Instruct"
HELD_OUT = QUICKSTART_VOLUME / "datasets" / "airports.test.jsonl"
NAMESPACE = "quickstart-test"
ROWS = 32


@dataclass
class ClusterRun:
    """What the cluster's run of the quickstart left."""

    status: dict[str, Any]
    pods_seen: set[str]
    pods_left: list[dict[str, Any]]
    artifacts: Path
    operators_deleted: list[str] = field(default_factory=list)


class OperatorKiller:
    """Deletes the operator's pods once in each stage, after the stage's first progress."""

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
            product.fill_volume(scoped, pod, QUICKSTART_VOLUME / folder, folder)
    killer = OperatorKiller(kubectl)
    with DepartureWatch(scoped.kubeconfig, NAMESPACE) as departing:
        scoped("apply", "--filename", str(QUICKSTART))
        job = product.follow(scoped, "airports", seconds=1200, seen=killer)
        pods_seen = departing.pods_seen()
    pods_left = scoped.json("get", "pods")["items"]
    artifacts = tmp_path_factory.mktemp("artifacts")
    with product.volume_pod(scoped, "quickstart", operator.trainer_image) as pod:
        product.read_volume(scoped, pod, "outputs/airports", artifacts)
    yield ClusterRun(job["status"], pods_seen, pods_left, artifacts, killer.stages)
    kubectl("delete", "namespace", NAMESPACE, "--timeout=120s")


@pytest.fixture(scope="module")
def local_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`finetune run examples/quickstart.yaml` without a cluster; the folder that holds its runs and outputs."""
    folder = tmp_path_factory.mktemp("local")
    claim = folder / "quickstart"
    claim.mkdir()
    for name in ("models", "datasets"):
        (claim / name).symlink_to(QUICKSTART_VOLUME / name)
    command = [
        sys.executable, "-m", "finetune_cli", "run", str(QUICKSTART),
        "--volume", f"quickstart={claim}", "--runs", str(folder / "runs"), "--device", "cpu",
    ]  # fmt: skip
    subprocess.run(command, check=True, timeout=1200)
    return folder


def local_results(folder: Path) -> dict[str, Any]:
    """Results of the stages of a local run, from the manifest beside its artifacts."""
    manifest = json.loads(
        (folder / "quickstart" / "outputs" / "airports" / "manifest.json").read_text("utf-8")
    )
    results: dict[str, Any] = manifest["results"]
    return results


@pytest.fixture(params=["cluster", "local"])
def merged(request: pytest.FixtureRequest) -> Path:
    """The merged folder of both ways to run."""
    if request.param == "cluster":
        run: ClusterRun = request.getfixturevalue("cluster_run")
        return run.artifacts / "merged"
    folder: Path = request.getfixturevalue("local_run")
    return folder / "quickstart" / "outputs" / "airports" / "merged"


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


def test_the_plan_is_in_the_status_with_its_memory_and_reasons(cluster_run: ClusterRun) -> None:
    plan = cluster_run.status["plan"]
    assert plan["training"]["microBatchSize"] == 4, "what the spec gives is kept"
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


def test_the_same_digests_come_out_without_a_cluster(cluster_run: ClusterRun, local_run: Path) -> None:
    prepared = local_results(local_run)["prepare"]
    assert prepared["dataset"]["digest"] == cluster_run.status["dataset"]["digest"]
    assert prepared["model"]["digest"] == cluster_run.status["model"]["digest"]


def _safetensors_header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header


def test_the_artifact_is_complete_and_not_quantised(merged: Path) -> None:
    config = json.loads((merged / "config.json").read_text("utf-8"))
    assert "quantization_config" not in config
    assert config == json.loads((BASE_MODEL / "config.json").read_text("utf-8"))
    found = _safetensors_header(merged / "model.safetensors")
    base = _safetensors_header(BASE_MODEL / "model.safetensors")
    assert {k: (v["dtype"], v["shape"]) for k, v in found.items()} == {
        k: (v["dtype"], v["shape"]) for k, v in base.items()
    }
    assert not [key for key in found if "absmax" in key or "quant_state" in key]
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (merged / name).read_bytes() == (BASE_MODEL / name).read_bytes()


def _exact_answers(model: Path, rows: int) -> dict[str, Any]:
    """Answers by plain transformers in a process where bitsandbytes cannot be imported."""
    command = [sys.executable, str(REPOSITORY / "scripts" / "exact_answers.py"), str(model), str(HELD_OUT)]
    answer = subprocess.run(
        [*command, "--rows", str(rows)], check=True, capture_output=True, text=True, timeout=900
    )
    found: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return found


def test_the_merged_model_answers_unseen_rows_exactly(merged: Path) -> None:
    assert _exact_answers(merged, ROWS)["exact"] >= ROWS // 2


def test_the_base_model_answers_none_or_few() -> None:
    assert _exact_answers(BASE_MODEL, 8)["exact"] <= 1


def test_merged_equals_trained_on_held_out_rows(local_run: Path) -> None:
    """KL(trained || merged) at most 0.01 a token, loss within the larger of 1 % and 0.005 nats a token."""
    workspace = next((local_run / "runs").iterdir()) / "workspace"
    merged = local_run / "quickstart" / "outputs" / "airports" / "merged"
    command = [
        sys.executable, str(REPOSITORY / "scripts" / "compare_models.py"), "--rows", "16",
        str(workspace), str(merged), str(HELD_OUT),
    ]  # fmt: skip
    answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=900)
    found = json.loads(answer.stdout.splitlines()[-1])
    assert found["klDivergence"] <= 0.01
    assert abs(found["mergedLoss"] - found["trainedLoss"]) <= max(0.01 * found["trainedLoss"], 0.005)


def test_a_second_local_run_has_nothing_left_to_do(
    local_run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = local_results(local_run)
    command = [
        sys.executable, "-m", "finetune_cli", "run", str(QUICKSTART), "--volume",
        f"quickstart={local_run / 'quickstart'}", "--runs", str(local_run / "runs"), "--device", "cpu",
    ]  # fmt: skip
    subprocess.run(command, check=True, timeout=300)
    assert local_results(local_run) == before
    assert "Training" not in capfd.readouterr().err
