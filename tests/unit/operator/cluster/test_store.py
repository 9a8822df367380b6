from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from finetune_operator.api.stages import Stage
from finetune_operator.cluster.node_store import GpuStore
from finetune_operator.cluster.store import Store
from finetune_operator.observed.observation import ChildJob, Claim, Observation, Pod
from finetune_operator.observed.packed import unpacked

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
    ((job, *others),) = store.running_pods()
    assert (unpacked(job), others) == (make_job(), [child, pod])


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
    assert len(store._entries) == 0


def make_store() -> tuple[Store, ChildJob, Pod]:
    """A store with one job, its Job of version 20 and its pod of version 21."""
    store = Store(GpuStore((), allow_time_slicing=False))
    child, pod = make_children()
    store.put_job(make_job())
    store.put_child(KEY, child)
    store.put_pod(KEY, pod)
    return store, child, pod


def observe(store: Store) -> Observation:
    found = store.observe(KEY)
    assert found is not None
    return found


def reread(
    store: Store, children: list[ChildJob], pods: list[Pod], claim: Claim | None = None, version: int = 30
) -> None:
    """Merge a fresh read at `version`."""
    known = store.identities(KEY)
    store.replace_children(KEY, known, children, pods, claim, (version, version), NOW)


def test_a_fresh_read_never_overwrites_what_the_watch_has_reported_since() -> None:
    store, child, pod = make_store()
    newer, joined = replace(pod, resource_version="40", running=False), replace(pod, uid="2")
    store.put_pod(KEY, newer)
    store.put_pod(KEY, replace(joined, resource_version="41"))
    reread(store, [replace(child, resource_version="19", suspended=True)], [pod])
    assert observe(store).children == (child,)
    assert {each.resource_version for each in observe(store).pods} == {"40", "41"}
    assert observe(store).last_read == NOW
    reread(store, [], [], version=50)
    assert (observe(store).children, observe(store).pods) == ((), ())


@pytest.mark.parametrize("kind", ["job", "child", "pod", "claim"])
def test_an_answer_that_comes_after_the_deletion_brings_nothing_back(kind: str) -> None:
    store, child, pod = make_store()
    claim = Claim("demo-workspace", "claim", UID, "22", deleting=False)
    store.put_claim(KEY, claim)
    job = make_job(resource_version="10")
    put: dict[str, Callable[[], object]] = {
        "job": lambda: store.put_job(job),
        "child": lambda: store.put_child(KEY, child),
        "pod": lambda: store.put_pod(KEY, pod),
        "claim": lambda: store.put_claim(KEY, claim),
    }
    for uid, remove in (
        (child.uid, store.remove_child),
        (pod.uid, store.remove_pod),
        (claim.uid, store.remove_claim),
        (UID, store.remove_job),
    ):
        remove(KEY, uid, 25)
    put[kind]()
    assert len(store._entries) == 0


def test_a_child_without_its_label_is_found_again_after_it_seemed_deleted() -> None:
    """The watch reports the loss of the label as a deletion, with the version of the change."""
    store, child, pod = make_store()
    hidden = replace(pod, resource_version="25", watched=False)
    store.remove_pod(KEY, pod.uid, 25)
    assert observe(store).pods == ()
    reread(store, [child], [hidden])
    assert observe(store).pods == (hidden,)
    store.remove_pod(KEY, pod.uid, 25)
    assert observe(store).pods == (hidden,), "a report that comes twice changes nothing"
    assert store.purge("pods", set(), 99) == [], "no list shows it"
    store.remove_pod(KEY, pod.uid, 26)
    assert observe(store).pods == ()


def test_a_hidden_child_is_dropped_with_its_job() -> None:
    store, _, pod = make_store()
    store.put_pod(KEY, replace(pod, resource_version="25", watched=False))
    store.remove_job(KEY, UID)
    assert store.purge("pods", set(), 99) == [KEY]


def test_a_fresh_read_looks_for_recorded_and_known_objects() -> None:
    store, child, pod = make_store()
    store.put_pod(KEY, replace(pod, uid="other", owner_uid="a Job that is gone"))
    store.put_job(make_job(resource_version="11", status={"stage": {"jobName": "demo-train-3"}}))
    known = store.identities(KEY)
    assert known.job_names == {child.name, "demo-train-3"}
    assert known.job_uids == {child.uid, "a Job that is gone"}
    assert store.identities(("team", "none")).job_names == frozenset()


def test_a_fresh_read_looks_for_the_pods_of_former_jobs_until_the_job_has_ended() -> None:
    store, child, pod = make_store()
    store.remove_child(KEY, child.uid, 30)
    store.remove_pod(KEY, pod.uid, 31)
    assert store.identities(KEY).job_uids == {child.uid}, "the pod may have lost only its label"
    store.put_child(KEY, replace(child, uid="other", resource_version="32"))
    store.put_job(make_job(resource_version="33", status={"completionTime": "2026-11-24T09:00:00Z"}))
    store.remove_child(KEY, "other", 34)
    assert store.identities(KEY).job_uids == set()


def test_only_a_claim_that_was_known_before_a_fresh_read_can_be_gone() -> None:
    store, child, pod = make_store()
    old, new = (Claim("demo-workspace", uid, UID, "22", deleting=False) for uid in ("old", "new"))
    store.put_claim(KEY, old)
    known = store.identities(KEY)
    store.put_claim(KEY, new)
    store.replace_children(KEY, known, [child], [pod], None, (30, 30), NOW)
    assert observe(store).claim == new


def test_the_claim_of_an_earlier_job_of_the_same_name_is_not_the_jobs_own() -> None:
    store, _, _ = make_store()
    earlier = Claim("demo-workspace", "1", "earlier", "22", deleting=True)
    store.put_claim(KEY, earlier)
    assert (observe(store).claim, observe(store).previous_claim) == (None, earlier)


def test_an_object_that_nobody_controls_any_more_is_forgotten() -> None:
    store, child, pod = make_store()
    assert store.disown(child.uid, 30) == KEY
    assert observe(store).children == ()
    assert observe(store).pods == (pod,)
    assert store.disown("unknown", 30) is None
    store.put_child(KEY, child)
    assert observe(store).children == ()


def test_a_late_event_of_an_earlier_job_takes_no_progress_from_the_new_one() -> None:
    store = Store(GpuStore((), allow_time_slicing=False))
    store.put_job(make_job(uid="new", resource_version="50"))
    store.set_progress(KEY, make_progress(Stage.TRAIN))
    assert not store.put_job(make_job(uid="old", resource_version="40"))
    assert observe(store).progress is not None


def test_a_late_event_does_not_take_back_an_accepted_delete() -> None:
    store, child, _ = make_store()
    store.mark_child_deleting(KEY, child.uid)
    store.put_child(KEY, child)
    assert observe(store).children[0].deleting


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


def test_a_warning_ends_with_its_child_and_is_new_once() -> None:
    store = Store(GpuStore((), allow_time_slicing=False))
    child, pod = make_children()
    store.put_job(make_job())
    store.put_child(KEY, child)
    store.put_pod(KEY, pod)
    assert store.set_warning(KEY, pod.uid, "FailedMount: m")
    assert not store.set_warning(KEY, pod.uid, "FailedMount: m")
    assert not store.set_warning(KEY, "another", "FailedMount: m"), "it is gone"
    observation = store.observe(KEY)
    assert observation is not None
    assert observation.warnings == {pod.uid: "FailedMount: m"}
    store.remove_pod(KEY, pod.uid)
    assert store.warning(KEY, pod.uid) == ""


def test_a_child_of_an_earlier_job_of_the_same_name_is_not_expected_to_start() -> None:
    store = Store(GpuStore((), allow_time_slicing=False))
    child, _ = make_children()
    store.put_job(make_job())
    store.put_child(KEY, child)
    later = NOW + timedelta(seconds=10)
    assert [each.uid for each in store.unstarted(later)[KEY]] == [child.uid]
    store.put_job(make_job(uid="new", resource_version="999"))
    assert store.unstarted(later) == {}
    store.remove_child(KEY, child.uid)
    assert store.unstarted(later) == {}


def test_a_list_of_one_namespace_says_nothing_about_the_others() -> None:
    store = Store(GpuStore((), allow_time_slicing=False))
    store.put_job(make_job(resource_version="1"))
    store.put_job(make_job(namespace="other", uid="other", resource_version="1"))
    assert store.purge("jobs", set(), 9, "team") == [KEY]
    assert store.job_keys() == [("other", "demo")]


def test_a_forgotten_namespace_comes_back_with_the_next_list() -> None:
    store = Store(GpuStore((), allow_time_slicing=False))
    child, pod = make_children()
    store.put_job(make_job(resource_version="1"))
    store.put_job(make_job(namespace="other", uid="other", resource_version="1"))
    store.put_child(KEY, child)
    store.put_pod(KEY, pod)
    assert store.forget("team") == [KEY]
    assert store.job_keys() == [("other", "demo")]
    assert store.running_pods() == []
    assert store.observe(KEY) is None
    assert store.put_job(make_job(resource_version="1"))
    assert store.put_child(KEY, child)
    assert store.put_pod(KEY, pod)
    observation = store.observe(KEY)
    assert observation is not None
    assert (observation.children, observation.pods) == ((child,), (pod,))


def test_a_list_of_one_namespace_removes_nothing_of_another_one() -> None:
    store = Store(GpuStore((), allow_time_slicing=False))
    for namespace in ("team", "other"):
        store.put_job(make_job(namespace=namespace, uid=namespace, resource_version="5"))
    assert store.purge("jobs", set(), 9, "team") == [("team", "demo")]
    assert store.job_keys() == [("other", "demo")]
    assert store.purge("jobs", set(), 9) == [("other", "demo")]
    assert len(store._entries) == 0


@pytest.mark.parametrize("namespace", ["team", ""])
@pytest.mark.parametrize("kind", ["children", "pods", "claims"])
def test_an_object_that_a_list_lacks_is_removed_from_every_job(kind: str, namespace: str) -> None:
    child, pod = make_children()
    claim = Claim("demo-workspace", "claim", UID, "5", deleting=False)
    store = Store(GpuStore((), allow_time_slicing=False))
    keys = [("team", f"demo-{number}") for number in range(3)]
    for key in keys:
        store.put_job(make_job(name=key[1], uid=key[1]))
        store.put_child(key, replace(child, uid=f"child-{key[1]}", resource_version="5", watched=True))
        store.put_pod(key, replace(pod, uid=f"pod-{key[1]}", resource_version="5", watched=True))
        store.put_claim(key, replace(claim, uid=f"claim-{key[1]}"))
    assert store.purge(kind, set(), 9, namespace) == keys
    assert store.purge(kind, set(), 9, namespace) == []
    for key in keys:
        found = store.identities(key)
        observation = store.observe(key)
        assert observation is not None
        held = {"children": observation.children, "pods": observation.pods, "claims": found.claim_uids}
        assert {name for name, objects in held.items() if objects} == {*held} - {kind}


def test_a_job_whose_children_are_gone_is_known_to_have_had_some() -> None:
    store = Store(GpuStore((), allow_time_slicing=False))
    store.put_job(make_job(resource_version="10"))
    new = store.observe(KEY)
    child, pod = make_children()
    store.put_child(KEY, child)
    store.put_pod(KEY, pod)
    store.remove_pod(KEY, pod.uid)
    store.remove_child(KEY, child.uid)
    later = store.observe(KEY)
    assert new is not None
    assert later is not None
    assert (new.had_jobs, later.had_jobs, later.children) == (False, True, ())
