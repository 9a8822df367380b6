"""Every job ends and no stage runs again after its success, even if anything is lost, repeated or restarted."""

from __future__ import annotations

from dataclasses import replace

from finetune_operator.api.stages import WORK_STAGES, Stage
from finetune_operator.observed.observation import ChildJob, Rejection
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.operator import make_failure, make_inventory, make_job, make_node, make_result, make_spec
from tests.support.world import World

DISTURBANCES = (
    "refuse",
    "linger",
    "pods gone",
    "hide the job",
    "hide the pods",
    "hang",
    "lose the node",
    "do not start",
    "suspend by a queue",
    "resume by a queue",
)
EVENTS = st.lists(
    st.sampled_from(
        [
            "decide",
            "decide and crash",
            "succeed",
            "fail",
            "fail at the destination",
            "vanish",
            "interrupt",
            "disrupt",
            "kill",
            "kill and forget",
            "delete by hand",
            "suspend",
            "resume",
            "wait",
            "schedule",
            "fitting gpu",
            "small gpu",
            "no gpu",
            *DISTURBANCES,
        ]
    ),
    max_size=60,
)

INVENTORIES = {
    "fitting gpu": make_inventory(make_node()),
    "small gpu": make_inventory(make_node("tiny", "NVIDIA-Tiny", 600)),
    "no gpu": make_inventory(),
}


def apply(world: World, event: str) -> None:
    """Let one thing happen, if it can happen now."""
    child = next(iter(world.children.values()), None)
    match event:
        case "decide":
            world.step()
        case "decide and crash":
            world.step(lose_actions=True)
        case "wait":
            world.wait(15)
        case "fitting gpu" | "small gpu" | "no gpu":
            world.inventory = INVENTORIES[event]
        case "suspend" | "resume":
            world.job = replace(world.job, spec={**world.job.spec, "suspend": event == "suspend"})
        case "delete by hand" if child is not None:
            world.delete_child(child.name)
        case "schedule" if child is not None and not child.suspended:
            schedule(world, child)
        case _ if event in DISTURBANCES:
            disturb(world, child, event)
        case _ if child is not None and not child.suspended:
            end(world, child, event)


def disturb(world: World, child: ChildJob | None, event: str) -> None:
    """Let others than the operator and the trainer act."""
    match event:
        case "refuse":
            # Its time of retry has come long ago, so it holds nothing up by itself.
            world.rejection = Rejection("exceeded quota", world.now)
        case "linger":
            world.lingers = True
        case "pods gone":
            world.remove_deleted_pods()
        case "hang":
            world.pods = {
                uid: replace(pod, deleting=True, deletion_time=world.now) if pod.live and pod.node else pod
                for uid, pod in world.pods.items()
            }
        case "lose the node":
            world.lost_nodes = {"node1"}
        case "do not start":
            world.pods = {
                uid: replace(pod, running=False, phase="Pending", waiting=("ErrImagePull", ""))
                if pod.live
                else pod
                for uid, pod in world.pods.items()
            }
        case "hide the pods":
            world.hidden |= set(world.pods)
        case "hide the job" if child is not None:
            world.hidden.add(child.uid)
        case "suspend by a queue" | "resume by a queue" if child is not None and not child.held:
            suspend = event == "suspend by a queue"
            world.children[child.name] = replace(child, suspended=suspend)


def schedule(world: World, child: ChildJob) -> None:
    """Give the child's pod a node, or mark it as unschedulable."""
    held = any(pod.owner_uid == child.uid for pod in world.pods.values())
    if held:
        return
    if child.stage is Stage.TRAIN and world.inventory is not INVENTORIES["fitting gpu"]:
        world.run_pod(child.name, phase="Pending", running=False, node="", unschedulable="0/3 nodes")
    else:
        world.run_pod(child.name)


def end(world: World, child: ChildJob, event: str) -> None:
    """End the child's pod in the way that the event says."""
    stage, attempt = child.stage, child.attempt
    match event:
        case "succeed":
            world.end_pod(child.name, make_result(stage, attempt))
        case "fail":
            world.end_pod(child.name, make_failure(stage, "InternalError", attempt), 69)
        case "fail at the destination":
            world.end_pod(child.name, make_failure(stage, "DestinationUnwritable", attempt), 65)
        case "interrupt":
            world.end_pod(child.name, make_failure(stage, "Interrupted", attempt, "Interrupted"), 75)
        case "vanish":
            world.end_pod(child.name, "", 137)
        case "disrupt":
            world.end_pod(child.name, "", 143, disrupted=True)
        case "kill" | "kill and forget":
            world.end_pod(child.name, "", 137, deleting=True)
            world.children[child.name] = replace(child, finished=True, failure="BackoffLimitExceeded")
            if event == "kill and forget":
                world.pods = {uid: pod for uid, pod in world.pods.items() if pod.owner_uid != child.uid}


def unfinished(world: World) -> list[str]:
    """Jobs that may still run something."""
    ended = {pod.owner_uid for pod in world.pods.values() if pod.end is not None}
    return [child.name for child in world.children.values() if not child.finished and child.uid not in ended]


def others_live(world: World, name: str) -> list[str]:
    """Pods that run or may still run a trainer, other than those of this Job."""
    return [pod.name for pod in world.pods.values() if pod.live and pod.owner_uid != world.children[name].uid]


def succeeded_stages(world: World) -> list[str]:
    """Stages in the order of their recorded successes."""
    return [
        entry["stage"] for entry in world.job.status.get("attempts", []) if entry["outcome"] == "Succeeded"
    ]


@settings(max_examples=300, deadline=None)
@given(EVENTS, st.booleans(), st.sampled_from(({}, {"queueName": "gpus"}, {"cpuQueueName": "cpus"})))
@example(
    ["decide", "decide", "schedule", "decide", "delete by hand", "refuse", "decide", "wait", "decide"],
    True,
    {},
)
def test_no_stage_runs_after_its_success_and_every_job_ends(
    events: list[str],
    lingers: bool,  # noqa: FBT001 -- hypothesis passes examples by position
    queues: dict[str, str],
) -> None:
    spec = make_spec(**queues)
    world = World(job=make_job(spec), inventory=INVENTORIES["fitting gpu"], lingers=lingers)
    for event in events:
        done = set(succeeded_stages(world))
        before = len(world.created)
        apply(world, event)
        for name in world.created[before:]:
            assert not others_live(world, name), (event, name, "one attempt at a time")
            assert not any(name.startswith(f"demo-{stage.lower()}-") for stage in done), (event, name)
            fits = world.inventory is INVENTORIES["fitting gpu"]
            assert fits or not name.startswith("demo-train-"), (event, name)
        assert len(world.children) <= 2
        assert len(unfinished(world)) <= 1
        assert not any(child.queue and child.held for child in world.children.values()), (event, "only Kueue")
    world.inventory = INVENTORIES["fitting gpu"]
    world.job = replace(world.job, spec=spec)
    world.rejection, world.lingers = None, False
    for _ in range(60):
        world.remove_deleted_pods()
        for child in list(world.children.values()):
            apply(world, "resume by a queue" if child.suspended else "decide")
        world.step()
        if world.job.phase in {"Succeeded", "Failed"}:
            break
        world.wait(300)
        apply(world, "succeed")
    world.settle()
    assert world.job.status["phase"] in {"Succeeded", "Failed"}
    assert world.children == {}
    assert len(world.created) == len(set(world.created)) or any("delete by hand" in event for event in events)
    stages = succeeded_stages(world)
    assert stages == [stage.value for stage in WORK_STAGES][: len(stages)]
    if world.job.status["phase"] == "Succeeded":
        assert stages == [stage.value for stage in WORK_STAGES]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.booleans(), min_size=3, max_size=12))
def test_losing_actions_after_any_status_write_costs_nothing_but_time(losses: list[bool]) -> None:
    world = World(job=make_job())
    for loses in losses:
        world.step(lose_actions=loses)
        apply(world, "succeed")
    for _ in range(12):
        world.step()
        apply(world, "succeed")
    world.settle()
    assert world.job.status["phase"] == "Succeeded"
    assert world.created == ["demo-prepare-0", "demo-train-0", "demo-merge-0"]
