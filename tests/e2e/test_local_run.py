"""`finetune run` without a cluster gives the cluster's results. The tiny model does not need to learn anything."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.e2e import jobs
from tests.support.e2e.local_runs import run_locally, stage_results
from tests.support.e2e.tiny_runs import TinyRuns

pytestmark = pytest.mark.cluster


@dataclass(frozen=True)
class LocalRun:
    """A finished local run: the job's file, its claim's folder, the folder of workspaces, and the output."""

    job: Path
    claim: Path
    runs: Path

    @property
    def output(self) -> Path:
        return self.claim / "outputs" / "good"

    def run(self) -> None:
        run_locally(self.job, self.runs, f"{jobs.CLAIM}={self.claim}", seconds=600)


@pytest.fixture(scope="module")
def local_run(tmp_path_factory: pytest.TempPathFactory, tiny_runs: TinyRuns, tiny_assets: Path) -> LocalRun:
    """The cluster's good job, run by local processes; it has no cache, because no claim's folder is one."""
    folder = tmp_path_factory.mktemp("local")
    claim = folder / "claim"
    claim.mkdir()
    (claim / "models").symlink_to(tiny_assets / "models")
    document = json.loads(json.dumps(tiny_runs.document))
    del document["spec"]["modelCache"]
    data = jobs.config_map("data", jobs.jsonl(jobs.conversations(24)))
    job = folder / "job.yaml"
    job.write_text(f"{json.dumps(data)}\n---\n{json.dumps(document)}\n", encoding="utf-8")
    run = LocalRun(job, claim, folder / "runs")
    run.run()
    return run


def test_the_same_digests_come_out_without_a_cluster(tiny_runs: TinyRuns, local_run: LocalRun) -> None:
    prepared = stage_results(local_run.output)["prepare"]
    status = tiny_runs.good["status"]
    assert prepared["dataset"]["digest"] == status["dataset"]["digest"]
    assert prepared["model"]["digest"] == status["model"]["digest"]


def test_a_second_run_has_nothing_left_to_do(local_run: LocalRun, capfd: pytest.CaptureFixture[str]) -> None:
    before = stage_results(local_run.output)
    local_run.run()
    assert stage_results(local_run.output) == before
    assert "Training" not in capfd.readouterr().err
