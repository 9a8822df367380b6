"""Runs of the real command that are stopped and killed at random moments end as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.workspace.layout import WorkspaceLayout

from tests.support.repository import ROOT
from tests.support.workspaces import run_spec

STEPS, INTERVAL = 120, 4
SETTINGS: dict[str, Any] = {
    "maximumSteps": STEPS,
    "checkpoint": {"intervalSteps": INTERVAL},
    "lora": {"rank": 4, "alpha": 8, "dropout": 0.2, "targetModules": "AllLinear", "variant": "Standard"},
}


def adapter(workspace: Path) -> bytes:
    return (WorkspaceLayout(workspace).adapter / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(prepared_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the adapter of a run that nothing interrupts, with as many threads as the others have: sums differ else."""
    workspace = tmp_path_factory.mktemp("whole") / "workspace"
    shutil.copytree(prepared_llama / "workspace", workspace)
    assert interrupted(workspace, "SIGTERM", 0) == ([(0, "Finished")], [list(range(1, STEPS + 1))])
    return adapter(workspace)


def interrupted(workspace: Path, name: str, count: int) -> tuple[list[tuple[int, str]], list[list[int]]]:
    """Interrupt a run `count` times; return the end of each process, and the steps that each one reported."""
    run = workspace.parent / "run.json"
    run.write_text(
        run_spec(workspace, workspace / "output", **SETTINGS).model_dump_json(
            by_alias=True, exclude_none=True
        )
    )
    command = [sys.executable, "-m", "tests.support.processes.killed_train", str(run)]
    done = subprocess.run(
        [*command, str(workspace.parent / "result.json"), name, "7", str(count)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'trainer_image' / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"},
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    return [(code, activity) for code, activity in found["ends"]], found["steps"]


@pytest.mark.slow
@pytest.mark.parametrize("count", [7, pytest.param(20, marks=pytest.mark.full)])
def test_stops_at_random_moments_repeat_no_step_and_change_no_bit(
    workspace: Path, whole: bytes, count: int
) -> None:
    ends, steps = interrupted(workspace, "SIGTERM", count)
    assert [code for code, _ in ends] == [75] * count + [0], ends
    assert [step for process in steps for step in process] == list(range(1, STEPS + 1)), (ends, steps)
    assert adapter(workspace) == whole


@pytest.mark.slow
@pytest.mark.parametrize("count", [4, pytest.param(10, marks=pytest.mark.full)])
def test_kills_at_random_moments_cost_one_checkpoint_interval_at_most(
    workspace: Path, whole: bytes, count: int
) -> None:
    ends, steps = interrupted(workspace, "SIGKILL", count)
    assert [code for code, _ in ends] == [-9] * count + [0], ends
    reached = 0
    for process in steps:
        if process:
            assert reached - process[0] + 1 <= INTERVAL, (ends, steps)
            assert process == list(range(process[0], process[-1] + 1))
            reached = max(reached, process[-1])
    assert reached == STEPS
    assert adapter(workspace) == whole
