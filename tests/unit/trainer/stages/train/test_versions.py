"""A run that continues with other versions says so, with both versions and the step."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer.contract.bounds import MAXIMUM_VERSION_CHANGES
from finetune_trainer.contract.train_result import VersionChange
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.stages.train import versions
from finetune_trainer.stages.train.stage import train
from finetune_trainer.stages.train.versions import (
    VersionRecord,
    compiler_versions,
    current_versions,
    note_versions,
)
from finetune_trainer.telemetry.reporter import NullReporter
from transformers import TrainerState

from tests.support.workspaces import run_spec

_OLD = {"torch": "2.14.0+cu130", "peft": "0.21.2", "apex": "1.0"}
_NEW = {"torch": "2.15.0+cu132", "peft": "0.21.2", "cuda": "13.2"}


def test_every_package_that_touches_numbers_has_a_version() -> None:
    found = current_versions()
    assert found.keys() == {"accelerate", "bitsandbytes", "cuda", "peft", "torch", "transformers", "trl"}
    assert found["torch"] == torch.__version__
    assert all(version and len(version) <= 64 for version in found.values())


def test_compiled_code_is_for_these_versions() -> None:
    found = compiler_versions()
    assert found.keys() == {"torch", "cuda", "triton", "python"}
    assert found["torch"] == current_versions()["torch"]
    assert found["python"] == f"{sys.version_info.major}.{sys.version_info.minor}"


def test_changed_new_and_missing_software_is_named_with_both_versions() -> None:
    found = VersionRecord(_OLD).continued(_NEW, 7)
    assert found.versions == _NEW
    assert found.changes == (
        VersionChange(name="apex", before="1.0", after="none", step=7),
        VersionChange(name="cuda", before="none", after="13.2", step=7),
        VersionChange(name="torch", before="2.14.0+cu130", after="2.15.0+cu132", step=7),
    )
    assert found.continued(_NEW, 9) == found
    assert VersionRecord.read(found.document()) == found


def test_changes_of_earlier_continuations_stay_and_the_newest_win() -> None:
    record = VersionRecord({"torch": "0"})
    for step in range(1, MAXIMUM_VERSION_CHANGES + 3):
        record = record.continued({"torch": str(step)}, step)
    assert [change.step for change in record.changes] == list(range(3, MAXIMUM_VERSION_CHANGES + 3))


def test_an_older_checkpoint_and_equal_versions_are_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    state = TrainerState(global_step=7)
    with caplog.at_level(logging.INFO):
        assert note_versions(state) == VersionRecord(current_versions())
        assert note_versions(state).changes == ()
    assert [record.levelno for record in caplog.records] == [logging.INFO]


class _Stopping(NullReporter):
    """Sends SIGTERM to this process after a training step."""

    def update(
        self, activity: str, step: int, total: int | None, *, loss: float | None = None, **more: Any
    ) -> None:
        super().update(activity, step, total, loss=loss, **more)
        if activity == "Training" and loss is not None and step == 2:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
def test_a_run_resumed_by_other_software_has_both_versions_in_log_and_result(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    current = current_versions()
    run = run_spec(workspace, tmp_path / "output", maximumSteps=3)
    monkeypatch.setattr(versions, "current_versions", lambda: {**current, "torch": "2.14.0+cu130"})
    with pytest.raises(StageError) as caught:
        train(run, _Stopping())
    assert caught.value.reason is Reason.INTERRUPTED
    monkeypatch.setattr(versions, "current_versions", lambda: current)
    with caplog.at_level(logging.WARNING):
        result = train(run, NullReporter())
    assert result.versions == current
    assert result.version_changes == (
        VersionChange(name="torch", before="2.14.0+cu130", after=current["torch"], step=2),
    )
    lines = [record.getMessage() for record in caplog.records if "2.14.0+cu130" in record.getMessage()]
    assert len(lines) == 1
    assert lines[0].startswith(f"torch was 2.14.0+cu130 until step 2 and is {current['torch']} now")
