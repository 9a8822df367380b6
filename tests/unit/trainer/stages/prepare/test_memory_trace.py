"""PREPARE traces a model in a process, keeps the trace, and goes on without one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from finetune_operator.sizing.memory.training_plan import TrainingPlan
from finetune_trainer.contract.memory_trace import TraceAnswer
from finetune_trainer.contract.run_spec import ModelCache
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.stages.prepare.memory_trace import FOLDER, needs_trace, require_size, trace_memory
from finetune_trainer.workspace.layout import WorkspaceLayout

from tests.support.memory_oracle.fake_run import plan_spec
from tests.support.memory_traces import WITHOUT_FORMULA

RUN = plan_spec(TrainingPlan(64, 1, 2))
KNOWN = {"model_type": "llama"}


def test_a_run_on_a_gpu_is_traced_and_one_on_a_cpu_only_without_a_formula() -> None:
    assert needs_trace(RUN, KNOWN)
    on_cpu = RUN.model_copy(update={"device": "cpu"})
    assert not needs_trace(on_cpu, KNOWN)
    assert needs_trace(on_cpu, WITHOUT_FORMULA)


def test_only_a_gpu_run_that_nothing_can_size_ends_without_a_trace() -> None:
    missing = TraceAnswer(problem="ValueError: nobody knows")
    on_cpu = RUN.model_copy(update={"device": "cpu"})
    require_size(on_cpu, WITHOUT_FORMULA, missing)
    require_size(RUN, KNOWN, missing)
    with pytest.raises(StageError, match="nobody knows") as caught:
        require_size(RUN, WITHOUT_FORMULA, missing)
    assert caught.value.reason is Reason.MODEL_SIZE_UNKNOWN


def test_a_killed_trace_says_nothing_about_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later attempt gets more memory."""
    killer = tmp_path / "python"
    killer.write_text("#!/bin/sh\nkill -KILL $$\n")
    killer.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(killer))
    found = trace_memory(RUN, WorkspaceLayout(tmp_path), WITHOUT_FORMULA, 64)
    with pytest.raises(StageError, match=r"raise resources\.prepare\.memory") as caught:
        require_size(RUN, WITHOUT_FORMULA, found)
    assert caught.value.reason is Reason.HOST_OUT_OF_MEMORY


@pytest.mark.slow
def test_a_trace_is_made_once_and_shared_by_jobs_with_the_same_cache(tmp_path: Path) -> None:
    run = RUN.model_copy(update={"model_cache": ModelCache(path=tmp_path / "cache")})
    layout = WorkspaceLayout(tmp_path / "one")
    found = trace_memory(run, layout, WITHOUT_FORMULA, 64)
    assert found.trace is not None, found.problem
    assert found.trace.length == 64
    assert len(found.trace.rungs) == 8
    assert len(list((tmp_path / "cache" / FOLDER).iterdir())) == 1
    # No process could answer in no time.
    assert trace_memory(run, layout, WITHOUT_FORMULA, 64, seconds=0) == found
    assert trace_memory(run, WorkspaceLayout(tmp_path / "other"), WITHOUT_FORMULA, 64, seconds=0) == found
    other_seed = run.training.model_copy(update={"seed": 7})
    assert (
        trace_memory(run.model_copy(update={"training": other_seed}), layout, WITHOUT_FORMULA, 64, seconds=0)
        == found
    )


@pytest.mark.parametrize("part", ["length", "config", "rank"])
def test_another_input_needs_another_trace(tmp_path: Path, part: str) -> None:
    layout = WorkspaceLayout(tmp_path)
    marker = layout.marker("trace")
    lora = RUN.training.lora.model_copy(update={"rank": 2})
    run = RUN
    if part == "rank":
        run = RUN.model_copy(update={"training": RUN.training.model_copy(update={"lora": lora})})
    config = {**WITHOUT_FORMULA, "hidden_size": 32} if part == "config" else WITHOUT_FORMULA
    marker.parent.mkdir(parents=True)
    marker.write_text(json.dumps({"inputs": "sha256:another", "result": {"trace": None}}))
    found = trace_memory(run, layout, config, 65 if part == "length" else 64, seconds=0)
    assert found.trace is None
    assert found.problem is not None
    assert "did not end" in found.problem


@pytest.mark.slow
def test_a_model_that_cannot_be_traced_is_reported_and_tried_again(tmp_path: Path) -> None:
    layout = WorkspaceLayout(tmp_path)
    found = trace_memory(RUN, layout, {"model_type": "nobody_knows"}, 64)
    assert found.trace is None
    assert found.problem is not None
    assert "nobody_knows" in found.problem
    assert not layout.marker("trace").exists()
