from __future__ import annotations

from dataclasses import replace

from finetune_operator.api.stages import Stage
from finetune_operator.cluster.node_store import GpuStore
from finetune_operator.cluster.store import Store
from finetune_operator.observed.observation import ChildJob, Pod

from tests.support.operator import NOW, UID, make_job, make_progress
from tests.support.world import World

KEY = ("team", "demo")


def make_children() -> tuple[ChildJob, Pod]:
    world = World()
    world.settle()
    child = world.children["demo-prepare-0"]
    return replace(child, resource_version="20"), replace(
        world.run_pod(child.name), owner_uid=child.uid, resource_version="21"
    )


def test_an_older_version_never_replaces_a_newer_one() -> None:
    store = Store(GpuStore((), allow_time_slicing=False))
    store.put_job(make_job(resource_version="12", status={"phase": "Training"}))
    store.put_job(make_job(resource_version="11", status={"phase": "Preparing"}))
    observation = store.observe(KEY)
    assert observation is not None
    assert observation.job.status == {"phase": "Training"}


def test_a_late_event_of_an_earlier_job_of_the_same_name_changes_nothing() -> None:
    store = Store(GpuStore((), allow_time_slicing=False))
    store.put_job(make_job(uid="new", resource_version="50"))
    store.put_job(make_job(uid="old", resource_version="40"))
    store.remove_job(KEY, "old")
    observation = store.observe(KEY)
    assert observation is not None
    assert observation.job.uid == "new"


def test_a_new_job_of_the_same_name_does_not_inherit_progress() -> None:
    store = Store(GpuStore((), allow_time_slicing=False))
    store.put_job(make_job(resource_version="1"))
    assert store.set_progress(KEY, make_progress(Stage.TRAIN))
    assert not store.set_progress(KEY, make_progress(Stage.TRAIN)), "the same again is not new"
    store.put_job(make_job(uid="new", resource_version="2"))
    observation = store.observe(KEY)
    assert observation is not None
    assert observation.progress is None


def test_children_may_come_before_their_job() -> None:
    store = Store(GpuStore((), allow_time_slicing=False))
    child, pod = make_children()
    store.put_child(KEY, child)
    store.put_pod(KEY, pod)
    assert store.observe(KEY) is None
    assert store.job_keys() == []
    store.put_job(make_job())
    observation = store.observe(KEY)
    assert observation is not None
    assert observation.children == (child,)
    assert store.running_pods() == [(make_job(), child, pod)]


def test_a_full_list_removes_missed_deletions_but_nothing_newer_than_the_list() -> None:
    store = Store(GpuStore((), allow_time_slicing=False))
    child, pod = make_children()
    store.put_job(make_job(resource_version="10"))
    store.put_child(KEY, child)
    store.put_pod(KEY, pod)
    assert store.purge("pods", set(), 20) == []
    assert store.purge("pods", set(), 21) == [KEY]
    assert store.purge("children", {child.uid}, 99) == []
    assert store.purge("jobs", {UID}, 99) == []
    assert store.purge("jobs", set(), 99) == [KEY]
    assert store.observe(KEY) is None


def test_the_store_keeps_nothing_of_a_deleted_job() -> None:
    store = Store(GpuStore((), allow_time_slicing=False))
    child, pod = make_children()
    store.put_job(make_job())
    store.put_child(KEY, child)
    store.put_pod(KEY, pod)
    store.remove_job(KEY, UID)
    store.remove_child(KEY, child.uid)
    store.remove_pod(KEY, pod.uid)
    assert store._entries == {}


def test_an_accepted_delete_is_recorded_before_the_watch_reports_it() -> None:
    store = Store(GpuStore((), allow_time_slicing=False))
    child, _ = make_children()
    store.put_job(make_job())
    store.put_child(KEY, child)
    store.mark_child_deleting(KEY, child.uid)
    observation = store.observe(KEY)
    assert observation is not None
    assert observation.children[0].deleting
    assert observation.job.created == NOW
