"""What can happen to a job, and how it must end then.

A script is a generator. It yields until its moment has come, acts, and returns when all is done.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from devcluster.errors import ApiError
from devcluster.gpus import RESOURCE, Gpus
from devcluster.kubectl import Kubectl
from devcluster.layout import NODE_NAME
from devcluster.pretend_nodes import PretendNodes, gpu_node

from tests.support.e2e import jobs
from tests.support.e2e.scene import Scene
from tests.support.e2e.stillness import Stillness

STAGES = ("prepare", "train", "merge")
PROPAGATIONS = ("Background", "Foreground", "Orphan")
BAD_DATA = "bad"
"""The ConfigMap whose rows are no JSON."""
MOST_ATTEMPTS = 15
"""Of one job, including those that a lost node or an eviction interrupts. No fate needs so many."""
MOST_MISSES = 4
"""Lives of one job in which the test may come too late."""
_PATIENCE = 2
"""So many misses show that the kubelet does not tell of this stage in time."""
JUDGE_SECONDS = 120.0
"""Time for what follows the end of a job, such as the removal of its last pod."""
_LOST_LABEL = "tests.finetune.dev/lost"


@dataclass
class Stage:
    """Where scripts act."""

    scene: Scene
    kubectl: Kubectl
    nodes: PretendNodes


Script = Callable[[Stage, "Life"], Iterator[None]]
Judge = Callable[[Scene, "Life"], str]


@dataclass(frozen=True)
class Fate:
    """A kind of life: the spec, what happens, and how it must end."""

    name: str
    script: Script
    judge: Judge
    spec: dict[str, Any] = field(default_factory=dict)
    dataset: dict[str, Any] | None = None


@dataclass
class Life:
    """One job with its fate. `uids` are those of all FineTuneJobs that had its name."""

    name: str
    fate: Fate
    uids: list[str] = field(default_factory=list)
    missed: int = 0
    """Lives in which the moment of the script passed between two looks."""

    def running(self, scene: Scene, stage: str) -> str | None:
        """Return the pod in which the stage runs; after some misses, one that is about to run."""
        return scene.running(self.name, stage, or_bound=self.missed >= _PATIENCE)

    @property
    def node_label(self) -> str:
        """The label of the nodes on which it may train, if its fate chooses them. Each job has one of its own."""
        return f"{_LOST_LABEL}-{self.name}"

    @property
    def document(self) -> dict[str, Any]:
        """The FineTuneJob."""
        spec = dict(self.fate.spec)
        if "nodeSelector" in spec.get("resources", {}):
            spec["resources"] = {**spec["resources"], "nodeSelector": {self.node_label: "true"}}
        return jobs.fine_tune_job(self.name, dataset=self.fate.dataset, **spec)


def again(stage: Stage, life: Life) -> Iterator[None]:
    """Let a job live again whose moment nobody has seen. A stage may be short, and a busy machine looks rarely."""
    life.missed += 1
    stage.scene.delete(life.name, "Background")
    yield
    while life.name in stage.scene.jobs:
        yield
    life.uids.append(stage.scene.create(life.document))
    yield
    yield from life.fate.script(stage, life)


def undisturbed(_stage: Stage, _life: Life) -> Iterator[None]:
    """Let the job live."""
    yield from ()


def evicted(slug: str) -> Script:
    """Evict the stage's pod while it runs."""

    def script(stage: Stage, life: Life) -> Iterator[None]:
        while (pod := life.running(stage.scene, slug)) is None or not stage.scene.evict(pod):
            yield

    return script


def suspended(slug: str) -> Script:
    """Suspend the job while the stage runs, and resume it when no pod is left."""

    def script(stage: Stage, life: Life) -> Iterator[None]:
        scene = stage.scene
        while life.running(scene, slug) is None:
            yield
        scene.patch(life.name, {"suspend": True})
        yield
        while scene.condition(life.name, "Suspended")["status"] != "True" or any(
            left.startswith("pods") for left in scene.left_of(life.name)
        ):
            yield
        scene.patch(life.name, {"suspend": False})

    return script


def deleted(slug: str, propagation: str) -> Script:
    """Delete the job while the stage runs."""

    def script(stage: Stage, life: Life) -> Iterator[None]:
        while life.running(stage.scene, slug) is None:
            yield
        stage.scene.delete(life.name, propagation)
        yield
        while life.name in stage.scene.jobs:
            yield

    return script


def replaced(slug: str, propagation: str) -> Script:
    """Delete the job while the stage runs, and create its namesake at once."""

    def script(stage: Stage, life: Life) -> Iterator[None]:
        while life.running(stage.scene, slug) is None:
            yield
        stage.scene.delete(life.name, propagation)
        life.uids.append(stage.scene.create(life.document))
        yield

    return script


def edited(slug: str) -> Script:
    """Change what may be changed while the stage runs, and try to change what may not."""

    def script(stage: Stage, life: Life) -> Iterator[None]:
        while life.running(stage.scene, slug) is None:
            yield
        stage.scene.patch(life.name, {"lifecycle": {"retries": 7, "deadlineSeconds": 86_400}})
        try:
            stage.scene.patch(life.name, {"training": {"maximumSteps": 1}})
        except ApiError as error:
            if "training must not change after creation" not in str(error):
                raise
        else:
            raise AssertionError(f"the API server must refuse another training of {life.name}")

    return script


def node_lost(stage: Stage, life: Life) -> Iterator[None]:
    """Let TRAIN be bound to a pretend node, remove that node, and let the real one take its place."""
    node = f"pretend-{life.name}"
    pretend = gpu_node(node, Gpus(count=1))
    stage.nodes.add(replace(pretend, labels={**pretend.labels, life.node_label: "true"}))
    while not stage.scene.bound_to(life.name, "train", node):
        yield
    stage.nodes.remove(node)
    stage.kubectl("label", "node", NODE_NAME, f"{life.node_label}=true")
    while not stage.scene.ended(life.name):
        yield
    stage.kubectl("label", "node", NODE_NAME, f"{life.node_label}-")


def succeeds(scene: Scene, life: Life) -> str:
    """The job has succeeded, each stage once, and nothing is left of it but itself."""
    succeeded = scene.condition(life.name, "Succeeded")
    if succeeded["status"] != "True":
        return f"must have succeeded, found {succeeded}"
    found = Counter((each["stage"], each["outcome"]) for each in scene.jobs[life.name]["status"]["attempts"])
    once = {(name, "Succeeded"): 1 for name in ("Prepare", "Train", "Merge")}
    if {key: number for key, number in found.items() if key[1] != "Interrupted"} != once:
        return f"each stage must have succeeded once and never failed, found {dict(found)}"
    return _nothing_left(scene, life)


def fails(reason: str) -> Judge:
    """The job has failed for this reason, and only its workspace is left."""

    def judge(scene: Scene, life: Life) -> str:
        succeeded = scene.condition(life.name, "Succeeded")
        if (succeeded["status"], succeeded["reason"]) != ("False", reason):
            return f"must have failed with {reason}, found {succeeded}"
        left = scene.left_of(life.name)
        kept = [f"claims {life.name}-workspace"]
        return "" if left == kept else f"must have left only its workspace, found {left}"

    return judge


def is_gone(scene: Scene, life: Life) -> str:
    """Neither the job nor anything of it is left."""
    return "must be gone" if life.name in scene.jobs else _nothing_left(scene, life)


def leaves_orphans(scene: Scene, life: Life) -> str:
    """The job is gone, and what it owned belongs to nobody. Its trainer has ended, and no later stage has begun."""
    if life.name in scene.jobs:
        return "must be gone"
    for item in (*scene.children.values(), *scene.claims.values()):
        metadata = item["metadata"]
        if metadata.get("labels", {}).get("finetune.dev/job") == life.name and metadata.get(
            "ownerReferences"
        ):
            return f"must have left {metadata['name']} without an owner, found {metadata['ownerReferences']}"
    return ""


def succeeds_anew(scene: Scene, life: Life) -> str:
    """The namesake has succeeded."""
    uid = scene.jobs.get(life.name, {}).get("metadata", {}).get("uid")
    return (
        succeeds(scene, life)
        if uid == life.uids[-1]
        else f"must be the namesake {life.uids[-1]}, found {uid}"
    )


def _nothing_left(scene: Scene, life: Life) -> str:
    left = scene.left_of(life.name)
    return f"must have left nothing, found {left}" if left else ""


_SHARED: dict[str, Any] = {
    "workspace": jobs.SHARED_WORKSPACE,
    "resources": {"nodeSelector": {}, "tolerations": [{"key": RESOURCE, "operator": "Exists"}]},
}
PLAIN = Fate("plain", undisturbed, succeeds)
FATES: tuple[Fate, ...] = (
    PLAIN,
    Fate("bad-data", undisturbed, fails("MalformedDataset"), dataset={"configMap": {"name": BAD_DATA, "key": "data.jsonl"}}),
    Fate("node-lost", node_lost, succeeds, spec=_SHARED),
    *(
        Fate(f"no-memory-{slug}", undisturbed, fails("HostOutOfMemory"), spec={"resources": {slug: {"memory": "160Mi"}}})
        for slug in ("prepare", "train")
    ),
    *(Fate(f"evict-{slug}", evicted(slug), succeeds) for slug in STAGES),
    *(Fate(f"suspend-{slug}", suspended(slug), succeeds) for slug in STAGES),
    *(Fate(f"edit-{slug}", edited(slug), succeeds) for slug in STAGES),
    *(
        Fate(
            f"delete-{slug}-{propagation.lower()}",
            deleted(slug, propagation),
            leaves_orphans if propagation == "Orphan" else is_gone,
        )
        for slug in STAGES
        for propagation in PROPAGATIONS
    ),
    Fate("replace-prepare", replaced("prepare", "Foreground"), succeeds_anew),
    Fate("replace-train", replaced("train", "Background"), succeeds_anew),
)  # fmt: skip


def lives(wanted: str) -> list[Life]:
    """Return jobs for a number, or for names of fates between commas.

    A number takes each fate in turn, and plain ones beyond whole turns. A small number takes fates from the whole list.
    """
    if not wanted.isdecimal():
        by_name = {fate.name: fate for fate in FATES}
        chosen = [by_name[name] for name in wanted.split(",")]
    else:
        number = int(wanted)
        turns, rest = divmod(number, len(FATES))
        few = [FATES[index * len(FATES) // number] for index in range(number)]
        chosen = [*FATES * turns, *[PLAIN] * rest] if turns else few
    return [Life(f"{fate.name}-{index}", fate) for index, fate in enumerate(chosen)]


def live(stage: Stage, chosen: list[Life], *, still_seconds: float) -> list[str]:
    """Let all jobs live until they have ended; return which of them hang or go round in circles.

    A job may take any time as long as something of it changes at least every `still_seconds`.
    """
    scene = stage.scene
    scripts = {life.name: life.fate.script(stage, life) for life in chosen}
    stillness = Stillness(still_seconds)
    while True:
        scene.look()
        living = [life.name for life in chosen if life.name in scripts or not scene.ended(life.name)]
        wrong = stillness.hanging(scene, living)
        wrong += [
            f"{name} has made {MOST_ATTEMPTS} attempts"
            for name in living
            if len(scene.jobs.get(name, {}).get("status", {}).get("attempts", ())) >= MOST_ATTEMPTS
        ]
        wrong += [
            f"{life.name} was missed {life.missed} times" for life in chosen if life.missed > MOST_MISSES
        ]
        if wrong:
            return [*wrong, f"must have happened: {sorted(scripts)}, must have ended: {sorted(living)}"]
        for life in chosen:
            script = scripts.get(life.name)
            if script is None:
                continue
            if next(script, scripts) is scripts:
                del scripts[life.name]
            elif scene.finished(life.name):
                scripts[life.name] = script = again(stage, life)
                next(script)
        if not scripts and all(scene.ended(life.name) for life in chosen):
            return []
        time.sleep(0.5)


def judged(scene: Scene, chosen: list[Life]) -> list[str]:
    """Return what is wrong about each job, as soon as nothing is wrong or after a while."""
    deadline = time.monotonic() + JUDGE_SECONDS
    while True:
        scene.look()
        wrong = [f"{life.name} {found}" for life in chosen if (found := life.fate.judge(scene, life))]
        if not wrong or time.monotonic() > deadline:
            return wrong
        time.sleep(1)
