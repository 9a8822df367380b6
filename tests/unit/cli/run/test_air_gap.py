"""A run on a machine whose packets to the outside are lost: it calls nobody, and waits for nobody."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.air_gap import Outcome, run_air_gapped
from tests.support.tiny_models import conversation_rows, write_rows, write_tiny_model

pytestmark = pytest.mark.slow


def run_job(folder: Path, **members: Any) -> Outcome:
    """Run a whole job on a tiny model in that network."""
    claim = folder / "volumes" / "assets"
    claim.mkdir(parents=True)
    write_tiny_model(claim / "model")
    write_rows(claim / "rows.jsonl", conversation_rows(40))
    spec = {
        "model": {"source": {"persistentVolumeClaim": {"claimName": "assets", "path": "model"}}},
        "dataset": {"source": {"persistentVolumeClaim": {"claimName": "assets", "path": "rows.jsonl"}}},
        "training": {"maximumSteps": 2, "maximumLength": 64, "effectiveBatchSize": 2, "microBatchSize": 2},
        "evaluation": {"maximumRows": 2, "generatedRows": 0},
        "output": {"destination": {"persistentVolumeClaim": {"claimName": "assets", "path": "out"}}},
        **members,
    }
    job = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "tiny"},
        "spec": spec,
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    command = [sys.executable, "-m", "finetune_cli", "run", str(folder / "job.yaml"), "--device", "cpu"]
    command += ["--volumes", str(folder / "volumes"), "--runs", str(folder / "runs")]
    # Libraries must not depend on a cache that an earlier run has filled.
    environment = {**os.environ, "HOME": str(folder), "HF_HOME": str(folder / "hf")}
    return run_air_gapped(command, folder, environment, 540)


def test_a_whole_run_sends_no_packet_to_the_outside(tmp_path: Path) -> None:
    found = run_job(tmp_path)
    assert found.code == 0, found.output
    assert found.destinations == ()
    assert json.loads((tmp_path / "volumes/assets/out/manifest.json").read_text())["files"]


@pytest.mark.full
def test_a_tracker_that_is_cut_off_costs_a_minute_and_not_the_run(tmp_path: Path) -> None:
    found = run_job(tmp_path, tracking={"mlflow": {"uri": "http://mlflow.example.com"}})
    assert found.code == 0, found.output
    assert found.destinations == ("198.18.0.1 port 53",)
    [home] = (tmp_path / "runs").iterdir()
    [log] = home.glob("workspace/logs/publish-*.log")
    assert "MLflow has no record of this run" in log.read_text()
