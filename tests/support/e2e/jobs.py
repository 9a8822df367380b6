"""FineTuneJobs for the cluster tests, with their small model and data."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from devcluster import product
from devcluster.kubectl import Kubectl

from tests.support.e2e.object_recorder import ObjectRecorder

CLAIM = "assets"
SERVER_LABEL = "tests.finetune.dev/server"
"""Label of pods that serve all tests of a module, so no single test deletes them."""


def conversations(count: int) -> list[dict[str, Any]]:
    """Return `count` different two-turn conversations."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"What is {number} plus {number}?"},
                {"role": "assistant", "content": f"The sum is {2 * number}."},
            ]
        }
        for number in range(1, count + 1)
    ]


def jsonl(rows: list[dict[str, Any]]) -> str:
    """Return rows as the text of a JSONL file."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def config_map(name: str, text: str) -> dict[str, Any]:
    """Return a ConfigMap with a dataset under the key data.jsonl."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name},
        "data": {"data.jsonl": text},
    }


def fine_tune_job(name: str, *, dataset: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    """Return a job on the tiny model of the claim `assets`; `spec` replaces whole top-level fields."""
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": {
            "model": {"source": {"persistentVolumeClaim": {"claimName": CLAIM, "path": "models/tiny"}}},
            "dataset": {"source": dataset or {"configMap": {"name": "data", "key": "data.jsonl"}}},
            "training": {
                "maximumSteps": 4,
                "effectiveBatchSize": 2,
                "microBatchSize": 2,
                "maximumLength": 256,
                "learningRate": 0.001,
            },
            "evaluation": {"maximumRows": 4},
            "output": {
                "destination": {"persistentVolumeClaim": {"claimName": CLAIM, "path": f"outputs/{name}"}}
            },
            "workspace": {"size": "1Gi"},
            **spec,
        },
    }


# No node has this many CPUs: later stages wait, so a test of PREPARE needs no TRAIN.
ONLY_PREPARE = {"train": {"cpu": "1000"}}


def secret(name: str, values: dict[str, str]) -> dict[str, Any]:
    """Return a Secret with text values."""
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": values}


def until(
    kubectl: Kubectl, name: str, what: str, *, seconds: float, holds: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """Poll a FineTuneJob until `holds` is true, and return it; fail with the last status after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        job: dict[str, Any] = kubectl.json("get", "finetunejob", name)
        if holds(job):
            return job
        if time.monotonic() > deadline:
            pytest.fail(
                f"{what} must be seen within {seconds:.0f} s, the status is {json.dumps(job.get('status'))}"
            )
        time.sleep(0.3)


SHARED_WORKSPACE = {"size": "1Gi", "storageClassName": "shared"}
"""A workspace that pods on every node can use, including pretend nodes."""


def stalled(reason: str) -> Callable[[dict[str, Any]], bool]:
    """Return a check that a job is stalled for `reason` and has not failed."""

    def holds(job: dict[str, Any]) -> bool:
        found = product.condition(job, "Stalled")
        return (found["status"], found["reason"]) == ("True", reason)

    return holds


def held(kubectl: Kubectl, kubeconfig: Path, job: dict[str, Any], *, seconds: float) -> dict[str, Any]:
    """Apply a job that fits on no GPU, and return it when PREPARE is suspended and its pod is gone.

    Fails if PREPARE has ended before, or if there was another Job or a pod with a GPU.
    """
    name = job["metadata"]["name"]
    with ObjectRecorder(kubeconfig, str(kubectl.namespace)) as seen:
        kubectl.apply(job)
        found = until(kubectl, name, "DoesNotFit", seconds=seconds, holds=stalled("DoesNotFit"))
        assert product.condition(found, "Succeeded")["status"] == "Unknown"
        assert not found["status"].get("attempts"), "PREPARE must not have ended"
        until(kubectl, name, "no pod", seconds=60, holds=lambda _: not stage_pods(kubectl, name, "prepare"))
        assert seen.jobs == [f"{name}-prepare-0"]
        assert seen.gpu_pods == []
    assert kubectl.json("get", "job", f"{name}-prepare-0")["spec"]["suspend"] is True
    return found


def waiting(reason: str) -> Callable[[dict[str, Any]], bool]:
    """Return a check that a job is in progress and waits for `reason`."""

    def holds(job: dict[str, Any]) -> bool:
        found = product.condition(job, "Reconciling")
        return (found["status"], found["reason"]) == ("True", reason)

    return holds


def stage_pods(kubectl: Kubectl, name: str, stage: str) -> list[dict[str, Any]]:
    """Return the present pods of a job's stage."""
    selector = f"--selector=finetune.dev/job={name},finetune.dev/stage={stage}"
    found: list[dict[str, Any]] = kubectl.json("get", "pods", selector)["items"]
    return found


def all_pods(kubectl: Kubectl, name: str) -> list[dict[str, Any]]:
    """Return the present pods of a job."""
    found: list[dict[str, Any]] = kubectl.json("get", "pods", f"--selector=finetune.dev/job={name}")["items"]
    return found


def bound(kubectl: Kubectl, name: str, stage: str, node: str, *, seconds: float) -> dict[str, Any]:
    """Poll until a pod of the stage is bound to `node`, and return it; fail with the present nodes after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        pods = stage_pods(kubectl, name, stage)
        for pod in pods:
            if pod["spec"].get("nodeName") == node:
                return pod
        if time.monotonic() > deadline:
            nodes = [(pod["metadata"]["name"], pod["spec"].get("nodeName")) for pod in pods]
            status = json.dumps(kubectl.json("get", "finetunejob", name).get("status"))
            pytest.fail(
                f"a {stage} pod must be on {node} within {seconds:.0f} s, found {nodes}, the status is {status}"
            )
        time.sleep(0.3)


def required_values(pod: dict[str, Any], key: str) -> set[str]:
    """Return the values of a label in all terms of the pod's required node affinity."""
    affinity = pod["spec"].get("affinity", {}).get("nodeAffinity", {})
    terms = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", {}).get("nodeSelectorTerms", [])
    return {
        value
        for term in terms
        for expression in term.get("matchExpressions", [])
        if expression["key"] == key and expression["operator"] == "In"
        for value in expression["values"]
    }


def prepared(kubectl: Kubectl, name: str, *, seconds: float) -> dict[str, Any]:
    """Poll a FineTuneJob until PREPARE succeeds, and return it; otherwise fail with the last status."""
    deadline = time.monotonic() + seconds
    while True:
        job: dict[str, Any] = kubectl.json("get", "finetunejob", name)
        ready = [product.condition(job, kind)["status"] for kind in ("DatasetReady", "ModelReady")]
        if ready == ["True", "True"]:
            return job
        if "False" in ready or time.monotonic() > deadline:
            pytest.fail(f"PREPARE of {name} must succeed within {seconds:.0f} s, found {job.get('status')}")
        time.sleep(0.5)


def write_tiny_model(folder: Path, tokenizer: Path) -> None:
    """Save a random two-layer Llama with the tokenizer files of `tokenizer`: real formats, one second per step."""
    import shutil  # noqa: PLC0415 -- with the related imports

    import torch  # noqa: PLC0415 -- 10 s, only if a model is made
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=2, tie_word_embeddings=True,
    )  # fmt: skip
    folder.mkdir(parents=True)
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(tokenizer / name, folder / name)


def suspend(room: Kubectl, name: str, *, value: bool) -> None:
    """Set `spec.suspend` of a job."""
    patch = json.dumps({"spec": {"suspend": value}})
    room("patch", "finetunejob", name, "--type=merge", f"--patch={patch}")
