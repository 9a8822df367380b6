from __future__ import annotations

from dataclasses import replace
from typing import Any

from finetune_operator.api.stages import Stage
from finetune_operator.cluster.node_store import GpuStore
from finetune_operator.cluster.store import Store
from finetune_operator.observed.activity import JobActivity
from finetune_operator.runtime.activities import Activities

from tests.support.operator import UID, make_job, make_progress
from tests.support.world import World

KEY = make_job().key


class Observed:
    """The activities of a world in which TRAIN of one job runs."""

    def __init__(self) -> None:
        self.world = World()
        self.world.settle()
        self.world.succeed(Stage.PREPARE)
        self.world.settle()
        self.pod = self.world.run_pod("demo-train-0")
        self.store = Store(GpuStore((), allow_time_slicing=False))
        self.activities = Activities(self.store)
        self.copy()

    def copy(self) -> None:
        """Let the store see the world."""
        self.store.put_job(self.world.job)
        for child in self.world.children.values():
            self.store.put_child(KEY, child)
        for pod in self.world.pods.values():
            self.store.put_pod(KEY, pod)

    def report(self, **changes: Any) -> None:
        self.activities.report(UID, make_progress(Stage.TRAIN, **changes))

    def shown(self) -> JobActivity | None:
        found = self.activities.of([self.world.job])
        assert len(found) <= 1
        return found[0] if found else None


def test_a_job_without_a_report_shows_nothing() -> None:
    assert Observed().shown() is None


def test_a_running_trainer_has_a_heartbeat_and_takes_steps() -> None:
    observed = Observed()
    observed.report()
    shown = observed.shown()
    assert shown is not None
    assert shown.heartbeat == make_progress(Stage.TRAIN).heartbeat_time
    assert shown.trains
    observed.report(activity="EvaluatingTuned")
    shown = observed.shown()
    assert shown is not None
    assert not shown.trains


def test_the_last_numbers_stay_after_the_pod_but_no_heartbeat_does() -> None:
    observed = Observed()
    observed.report()
    observed.store.remove_pod(KEY, observed.pod.uid)
    shown = observed.shown()
    assert shown is not None
    assert shown.training is not None
    assert shown.training.loss == 1.5
    assert (shown.heartbeat, shown.trains, shown.gpu_pod_ended) == (None, False, None)


def test_a_pod_of_train_that_outlives_its_trainer_shows_since_when() -> None:
    observed = Observed()
    observed.world.succeed(Stage.TRAIN)
    observed.store.remove_pod(KEY, observed.pod.uid)
    for pod in observed.world.pods.values():
        observed.store.put_pod(KEY, replace(pod, uid=f"{pod.uid}-ended", resource_version="900"))
    shown = observed.shown()
    assert shown is not None
    assert shown.gpu_pod_ended == observed.world.now
    for pod in observed.world.pods.values():
        observed.store.remove_pod(KEY, f"{pod.uid}-ended")
    assert observed.shown() is None


def test_another_job_of_the_same_name_does_not_inherit_the_numbers() -> None:
    observed = Observed()
    observed.report()
    assert observed.activities.of([replace(observed.world.job, uid="another")]) == []


def test_only_the_reports_of_jobs_with_series_are_kept() -> None:
    observed = Observed()
    observed.report()
    observed.activities.report("deleted", make_progress(Stage.TRAIN))
    observed.activities.forget_others([observed.world.job])
    assert len(observed.activities) == 1
    assert observed.shown() is not None
    observed.activities.forget_others([])
    assert len(observed.activities) == 0
