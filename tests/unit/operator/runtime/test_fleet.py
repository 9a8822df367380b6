from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from finetune_operator.api.stages import WORK_STAGES
from finetune_operator.cluster.node_store import GpuStore
from finetune_operator.cluster.store import Store
from finetune_operator.runtime.fleet import FleetMetrics
from prometheus_client import CollectorRegistry

from tests.support.operator import make_job, make_spec
from tests.support.world import World


class Fleet:
    """A store whose changes are counted."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.store = Store(GpuStore((), allow_time_slicing=False), FleetMetrics(self.registry).changed)

    def value(self, name: str, **labels: str) -> float | None:
        """The value of a series."""
        return self.registry.get_sample_value(name, labels)

    def live(self, world: World, *, reason: str | None = None) -> None:
        """Let a job run to its end, and store every state of it."""
        for stage in WORK_STAGES:
            world.step()
            self.store.put_job(world.job)
            world.settle()
            world.wait(60)
            if reason is not None:
                world.fail(stage, reason)
            else:
                world.succeed(stage)
            world.settle()
            self.store.put_job(world.job)
            if reason is not None:
                return


def test_ends_and_attempts_are_counted_and_measured_once() -> None:
    fleet, world = Fleet(), World()
    fleet.live(world)
    assert fleet.value("finetunejobs_ended_total", outcome="Succeeded", reason="Completed") == 1
    for stage in WORK_STAGES:
        labels = {"stage": stage.value, "outcome": "Succeeded"}
        assert fleet.value("finetunejob_stage_attempts_total", **labels) == 1
    sums = fleet.value("finetunejob_duration_seconds_sum", outcome="Succeeded")
    assert sums == (world.now - world.job.created) / timedelta(seconds=1)
    assert fleet.value("finetunejob_gpu_wait_seconds_count") == 1
    fleet.store.put_job(replace(world.job, resource_version="9999"))
    assert fleet.value("finetunejobs_ended_total", outcome="Succeeded", reason="Completed") == 1


def test_a_job_that_was_over_before_the_start_is_not_counted() -> None:
    earlier, world = Fleet(), World()
    earlier.live(world)
    fleet = Fleet()
    fleet.store.put_job(world.job)
    assert fleet.value("finetunejobs_ended_total", outcome="Succeeded", reason="Completed") == 0


def test_the_series_do_not_end_with_the_job() -> None:
    fleet, world = Fleet(), World()
    fleet.live(world)
    fleet.store.remove_job(world.job.key, world.job.uid)
    assert fleet.value("finetunejobs_ended_total", outcome="Succeeded", reason="Completed") == 1


def test_reasons_that_a_trainer_invents_make_no_series() -> None:
    fleet = Fleet()
    for number in range(5):
        uid = f"uid-{number}"
        fleet.store.put_job(make_job(name=f"demo{number}", uid=uid))
        status = {
            "completionTime": "2026-11-24T10:00:00Z",
            "conditions": [{"type": "Succeeded", "status": "False", "reason": f"Invented{number}"}],
        }
        fleet.store.put_job(make_job(name=f"demo{number}", uid=uid, status=status, resource_version="11"))
    assert fleet.value("finetunejobs_ended_total", outcome="Failed", reason="Other") == 5
    fleet.live(World(job=make_job(make_spec(), name="demo")), reason="InvalidDataset")
    assert fleet.value("finetunejobs_ended_total", outcome="Failed", reason="InvalidDataset") == 1


@pytest.mark.parametrize(
    "status",
    [
        {"attempts": 5},
        {"attempts": [{"stage": "Serve", "attempt": 0, "outcome": "Succeeded"}]},
        {"completionTime": "2026-11-24T10:00:00Z"},
        {"completionTime": 5, "conditions": [{"type": "Succeeded", "status": "True", "reason": "Completed"}]},
    ],
)
def test_what_another_version_wrote_is_not_counted(status: dict[str, Any]) -> None:
    fleet = Fleet()
    fleet.store.put_job(make_job())
    fleet.store.put_job(make_job(status=status, resource_version="11"))
    assert fleet.store.job_keys() == [("team", "demo")]


def test_every_reason_of_a_failure_has_a_series_before_the_first_one() -> None:
    """Otherwise `increase` of Prometheus would miss the first failure for a reason."""
    fleet = Fleet()
    for reason in ("InvalidDataset", "DeadlineExceeded", "InternalError", "Other"):
        assert fleet.value("finetunejobs_ended_total", outcome="Failed", reason=reason) == 0
    fleet.live(World(), reason="InvalidDataset")
    assert fleet.value("finetunejobs_ended_total", outcome="Failed", reason="InvalidDataset") == 1


def test_pulls_of_images_are_measured_if_the_node_had_to_pull() -> None:
    fleet = Fleet()
    attempts: list[dict[str, Any]] = []
    fleet.store.put_job(make_job())
    for number, seconds in enumerate((200, 0, None)):
        entry: dict[str, Any] = {"stage": "Train", "attempt": number, "outcome": "Interrupted"}
        attempts.append(entry if seconds is None else entry | {"imagePullSeconds": seconds})
        status = {"attempts": list(attempts)}
        fleet.store.put_job(make_job(status=status, resource_version=str(11 + number)))
    fleet.store.put_job(make_job(status={"attempts": attempts, "phase": "Training"}, resource_version="99"))
    name = "finetunejob_image_pull_seconds"
    assert fleet.value(f"{name}_count", stage="Train") == 1
    assert fleet.value(f"{name}_bucket", stage="Train", le="180.0") == 0
    assert fleet.value(f"{name}_bucket", stage="Train", le="300.0") == 1
    assert fleet.value(f"{name}_count", stage="Prepare") == 0
