"""`finetune plan` asks the cluster for its nodes and prints the plan that the operator chooses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from devcluster.kubectl import Kubectl
from devcluster.layout import BIN

from tests.support.e2e.tiny_runs import TinyRuns

pytestmark = pytest.mark.cluster


def test_the_printed_plan_is_the_plan_in_the_status(
    kubectl: Kubectl, tiny_runs: TinyRuns, tiny_assets: Path, tmp_path: Path
) -> None:
    status = tiny_runs.good["status"]
    plan = status["plan"]
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps(tiny_runs.document), encoding="utf-8")
    command = [
        sys.executable, "-m", "finetune_cli", "plan", str(file), "--json",
        "--model", str(tiny_assets / "models" / "tiny"),
        # The cluster of the tests trains on a CPU.
        "--device", "cpu",
        "--longest-row", str(status["dataset"]["longestExample"]),
    ]  # fmt: skip
    environment = {
        **os.environ,
        "KUBECONFIG": str(kubectl.kubeconfig),
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
    # If a CPU replaces the GPU, activations are kept regardless of the plan for the GPU.
    for name in ("microBatchSize", "gradientAccumulationSteps", "sequenceLength"):
        assert printed["chosen"][name] == plan["training"][name]
