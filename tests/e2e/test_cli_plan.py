"""`finetune plan` asks the cluster for its nodes and says what the operator will choose."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from devcluster.kubectl import Kubectl
from devcluster.layout import BIN

from tests.support.e2e import jobs

pytestmark = pytest.mark.cluster


def test_the_plan_before_applying_is_the_plan_in_the_status(
    assets: Kubectl, tiny_assets: Path, tmp_path: Path
) -> None:
    job = jobs.fine_tune_job("foreseen", resources=jobs.ONLY_PREPARE)
    del job["spec"]["training"]["microBatchSize"]  # so that there is something to choose
    assets.apply(jobs.config_map("data", jobs.jsonl(jobs.conversations(24))), job)
    status = jobs.until(
        assets, "foreseen", "a plan", seconds=90,
        holds=lambda job: bool((job.get("status", {}).get("plan") or {}).get("memory"))
        and "longestExample" in (job["status"].get("dataset") or {}),
    )["status"]  # fmt: skip
    plan = status["plan"]

    file = tmp_path / "job.yaml"
    file.write_text(json.dumps(job), encoding="utf-8")
    command = [
        sys.executable, "-m", "finetune_cli", "plan", str(file), "--json",
        "--model", str(tiny_assets / "models" / "tiny"),
        "--longest-row", str(status["dataset"]["longestExample"]),
    ]  # fmt: skip
    environment = {
        **os.environ,
        "KUBECONFIG": str(assets.kubeconfig),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }
    answer = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert answer.returncode == 0, answer.stderr
    printed = json.loads(answer.stdout)

    assert printed["fits"] is True
    assert {name: printed[name] for name in ("peakBytes", "deviceBytes")} == {
        name: plan["memory"][name] for name in ("peakBytes", "deviceBytes")
    }
    assert printed["usableBytes"] == plan["gpu"]["usableBytes"]
    # Where a CPU stands in for the GPU, activations are kept whatever the plan for the GPU is.
    for name in ("microBatchSize", "gradientAccumulationSteps", "sequenceLength"):
        assert printed["chosen"][name] == plan["training"][name]
