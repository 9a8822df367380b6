from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

from finetune_operator.api.reasons import Reason
from finetune_operator.api.stages import Stage
from finetune_operator.contract.result import MergeResult, TrainResult
from finetune_operator.observed.outcomes import stage_lost
from finetune_operator.settings import Settings
from finetune_operator.status.attempt_list import MAXIMUM_ATTEMPTS
from finetune_operator.status.draft import StatusDraft

from tests.support.operator import MERGE_PROVEN, NOW, TRAIN, TRAINER, make_job
from tests.support.world import World, started


def test_conditions_keep_their_transition_time_while_their_status_stays_the_same() -> None:
    world = started()
    world.run_pod("demo-prepare-0")
    world.wait(60)
    world.settle()
    entry = next(entry for entry in world.job.status["conditions"] if entry["type"] == "Reconciling")
    assert entry["reason"] == "Preparing"
    assert entry["lastTransitionTime"] == "2026-11-24T09:00:00Z"


def test_an_attempt_of_train_shows_estimated_and_measured_memory() -> None:
    measured = {"allocatedBytes": 10**9, "reservedBytes": 2 * 10**9, "deviceBytes": None}
    world = World(job=make_job(), settings=Settings(trainer=TRAINER))
    world.settle()
    world.succeed(Stage.PREPARE)
    world.settle()
    world.succeed(Stage.TRAIN, train={**TRAIN, "memory": measured})
    world.settle()
    memory = world.job.status["plan"]["memory"]
    assert world.job.status["attempts"][1]["memory"] == {
        "estimatedBytes": memory["peakBytes"],
        "estimatedDeviceBytes": memory["deviceBytes"],
        "allocatedBytes": 10**9,
        "reservedBytes": 2 * 10**9,
    }


def test_every_edit_leaves_the_earlier_draft_unchanged() -> None:
    world = started(Stage.TRAIN)
    draft = StatusDraft.begin(world.job, world.now)
    before = copy.deepcopy(draft.to_status())
    stored = copy.deepcopy(world.job.status)
    failed = (
        draft.record_job(NOW, "node1")
        .record_config({"model_type": "llama"})
        .record_host(Stage.TRAIN, 1, "because")
        .record_attempt(stage_lost("deleted"))
        .begin_attempt(1, NOW)
        .apply_train_result(TrainResult.model_validate(TRAIN))
        .set_progressing(Reason.WAITING_FOR_GPU, "waits")
        .fail(Reason.STAGE_LOST, "lost")
    )
    assert failed.to_status()["phase"] == "Failed"
    assert draft.to_status() == before
    assert world.job.status == stored


def test_a_full_list_of_attempts_keeps_the_failures_of_the_current_stage_longest() -> None:
    draft = StatusDraft.begin(started(Stage.TRAIN).job, NOW)
    for attempt in range(MAXIMUM_ATTEMPTS + 5):
        outcome = stage_lost("lost")
        if attempt % 2:
            outcome = replace(outcome, outcome="Interrupted")
        draft = draft.begin_attempt(attempt, NOW).record_attempt(outcome)
    attempts = draft.to_status()["attempts"]
    assert len(attempts) == MAXIMUM_ATTEMPTS
    assert draft.count_attempts(Stage.TRAIN, "Failed") == 13, "of attempts 0, 2, 4 and so on to 24"
    assert draft.find_attempt(Stage.PREPARE, 0) is None, "a success of an earlier stage is dropped first"


def test_a_wait_for_a_gpu_pauses_the_deadline_and_any_other_progress_resumes_it() -> None:
    draft = StatusDraft.begin(started(Stage.TRAIN).job, NOW).set_progressing(Reason.WAITING_FOR_GPU, "waits")
    assert draft.waiting_since == NOW
    later = replace(draft, now=NOW + timedelta(seconds=90))
    assert later.set_progressing(Reason.WAITING_FOR_GPU, "waits").waiting_since == NOW
    resumed = later.set_progressing(Reason.TRAINING, "runs")
    assert resumed.waiting_since is None
    assert resumed.to_status()["waiting"] == {"totalSeconds": 90}


def test_suspending_a_job_resets_its_clock() -> None:
    draft = StatusDraft.begin(started(Stage.TRAIN).job, NOW).stall(Reason.DOES_NOT_FIT, "too large").suspend()
    status = draft.to_status()
    assert status["phase"] == "Suspended"
    assert not {"startTime", "waiting"} & set(status)


def test_a_merge_shows_its_artifacts_with_the_adapters_base_and_the_proof() -> None:
    draft = StatusDraft.begin(started(Stage.MERGE).job, NOW)
    status = draft.apply_merge_result(MergeResult.model_validate(MERGE_PROVEN)).to_status()
    adapter, merged, base = status["artifacts"]
    assert adapter["baseDigest"] == base["digest"]
    assert "baseDigest" not in merged
    assert status["verification"]["verdict"] == "Proven"
    published = next(entry for entry in status["conditions"] if entry["type"] == "Published")
    assert published["message"].startswith("pvc://team/artifacts/demo/adapter, ")
    assert "; Proven: KL 0.001" in published["message"]


_CLIMBED: dict[str, Any] = {
    "rung": {"microBatchSize": 2, "gradientCheckpointing": True},
    "failedRungs": [
        {
            "microBatchSize": 4,
            "gradientCheckpointing": False,
            "activity": "Training",
            "step": 7,
            "allocatedBytes": 9,
        }
    ],
    "memory": {"allocatedBytes": 5, "reservedBytes": 6},
}


def test_a_training_on_another_rung_is_shown_with_the_rungs_that_failed() -> None:
    """The estimate in `status.plan` is that of the planned rung, so the attempt does not repeat it."""
    world = World(job=make_job(), settings=Settings(trainer=TRAINER))
    world.settle()
    world.succeed(Stage.PREPARE)
    world.settle()
    world.succeed(Stage.TRAIN, train={**TRAIN, **_CLIMBED})
    world.settle()
    entry = world.job.status["attempts"][1]
    assert {name: entry[name] for name in _CLIMBED} == _CLIMBED
    trained = next(entry for entry in world.job.status["conditions"] if entry["type"] == "Trained")
    assert trained["message"] == (
        "40 steps on cpu; with micro-batches of 2 with gradient checkpointing, because the GPU was out of memory with "
        "micro-batches of 4 without gradient checkpointing (Training)"
    )


def test_a_training_on_the_planned_rung_is_shown_as_before() -> None:
    world = World(job=make_job(), settings=Settings(trainer=TRAINER))
    world.settle()
    world.succeed(Stage.PREPARE)
    world.settle()
    world.succeed(Stage.TRAIN, train={**TRAIN, "rung": {"microBatchSize": 4, "gradientCheckpointing": False}})
    world.settle()
    assert "rung" not in world.job.status["attempts"][1]
    trained = next(entry for entry in world.job.status["conditions"] if entry["type"] == "Trained")
    assert trained["message"] == "40 steps on cpu"


def test_the_trainer_of_prepare_is_known_by_its_image() -> None:
    draft = StatusDraft.begin(make_job(), NOW)
    assert not draft.speaks(0, "a")
    known = draft.record_trainer("1.5", "a")
    assert known.speaks(5, "a")
    assert known.speaks(4, "a")
    assert not known.speaks(6, "a")
    assert not known.speaks(5, "b")


def test_the_status_names_every_destination_and_the_condition_counts_them() -> None:
    copies = [
        {"name": "bucket", "uri": "s3://models/bot"},
        {"name": "hub", "uri": "hf://team/bot", "digest": "0" * 40},
    ]
    world = started(Stage.MERGE)
    world.succeed(Stage.MERGE, merge={**MERGE_PROVEN, "publications": copies})
    world.settle()
    assert world.job.status["publications"] == copies
    entry = next(entry for entry in world.job.status["conditions"] if entry["type"] == "Published")
    artifacts = len(MERGE_PROVEN["artifacts"])
    counted = f"{artifacts} artifacts at 2 destinations" if artifacts != 1 else "1 artifact at 2 destinations"
    assert entry["message"].startswith(f"{counted}: bucket (s3://models/bot), hub (hf://team/bot)")
    assert (entry["status"], entry["reason"]) == ("True", "StageSucceeded")


def tracked_status(*records: dict[str, Any]) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Return status and condition of a job whose MERGE told these trackers."""
    world = started(Stage.MERGE)
    world.succeed(Stage.MERGE, merge={**MERGE_PROVEN, "tracking": list(records)})
    world.settle()
    entry = next(entry for entry in world.job.status["conditions"] if entry["type"] == "Tracked")
    return dict(world.job.status), entry


def test_a_recorded_run_is_named_in_the_status() -> None:
    status, entry = tracked_status({"kind": "MLflow", "recorded": True, "run": "39ae", "model": "bot/1"})
    assert status["tracking"] == [{"kind": "MLflow", "run": "39ae", "model": "bot/1"}]
    assert (entry["status"], entry["reason"]) == ("True", "RunRecorded")
    assert entry["message"] == "MLflow: run 39ae, model bot/1"


def test_a_tracker_that_failed_shows_in_its_condition_and_changes_nothing_else() -> None:
    status, entry = tracked_status(
        {"kind": "MLflow", "recorded": False, "message": "it is down"},
        {"kind": "KubeflowModelRegistry", "recorded": True, "run": "7", "model": "team/bot-1"},
    )
    assert (entry["status"], entry["reason"]) == ("False", "TrackerFailed")
    assert entry["message"] == "MLflow: it is down; KubeflowModelRegistry: run 7, model team/bot-1"
    assert status["phase"] == "Succeeded"
    assert [each["kind"] for each in status["tracking"]] == ["MLflow", "KubeflowModelRegistry"]


def test_a_job_without_trackers_has_no_such_condition() -> None:
    world = started(Stage.MERGE)
    world.succeed(Stage.MERGE, merge=MERGE_PROVEN)
    world.settle()
    assert "Tracked" not in [entry["type"] for entry in world.job.status["conditions"]]
    assert "tracking" not in world.job.status
