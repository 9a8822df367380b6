from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from finetune_operator.api.quantities import parse_bytes
from finetune_operator.api.stages import Stage
from finetune_operator.lifecycle.actions import CreateClaim, DeleteClaim, ExpandClaim
from finetune_operator.placement.storage import (
    JobVolumes,
    MountedClaim,
    StorageClass,
    VolumeRecord,
    project_storage_class,
    project_volume,
)
from finetune_operator.settings import Settings, TrainerSettings

from tests.support.operator import CONFIG, make_inventory, make_job, make_node, make_progress, make_spec
from tests.support.world import World

ZONE = "topology.kubernetes.io/zone"
NORTH = make_node("north", labels={ZONE: "north"})
SOUTH = make_node("south", labels={ZONE: "south"}, allocatable={"cpu": "8"})
SOUTH = replace(SOUTH, labels={"kubernetes.io/hostname": "south", ZONE: "south"})


def make_class(**changes: Any) -> StorageClass:
    """A zonal class. It creates a volume in the zone of its first pod."""
    body = {
        "metadata": {"name": "zonal"},
        "provisioner": "disk.example.com",
        "volumeBindingMode": "WaitForFirstConsumer",
        **changes,
    }
    return project_storage_class(body)


def make_volume(zone: str) -> VolumeRecord:
    """A volume that only nodes of this zone can use."""
    term = {"matchExpressions": [{"key": ZONE, "operator": "In", "values": [zone]}]}
    affinity = {"required": {"nodeSelectorTerms": [term]}}
    return project_volume(
        {
            "metadata": {"name": f"pv-{zone}"},
            "spec": {"capacity": {"storage": "20Gi"}, "nodeAffinity": affinity},
        }
    )


def workspace(zone: str = "north", capacity: str = "20Gi") -> MountedClaim:
    """The job's bound workspace."""
    return MountedClaim("demo-workspace", "claim", ("ReadWriteOnce",), capacity, make_volume(zone))


def test_prepare_is_kept_to_zones_with_a_gpu() -> None:
    world = World(inventory=make_inventory(NORTH, SOUTH), volumes=JobVolumes(storage_class=make_class()))
    world.settle()
    affinity = world.bodies["demo-prepare-0"]["spec"]["template"]["spec"]["affinity"]
    assert "north" in json.dumps(affinity)
    assert "south" not in json.dumps(affinity)


def test_a_volume_out_of_reach_of_every_fitting_gpu_stalls_the_job_until_one_joins() -> None:
    world = World(inventory=make_inventory(NORTH, SOUTH))
    world.settle()
    world.succeed(Stage.PREPARE)
    world.volumes = JobVolumes(workspace=workspace("south"), storage_class=make_class())
    world.settle()
    assert world.condition("Stalled") == ("True", "WorkspaceZoneMismatch")
    assert world.condition("Succeeded") == ("Unknown", "WorkspaceZoneMismatch")
    assert world.created == ["demo-prepare-0"]
    world.inventory = make_inventory(NORTH, make_node("south", labels={ZONE: "south"}))
    world.settle()
    assert list(world.children) == ["demo-train-0"]


def test_a_model_cache_that_only_one_node_can_mount_fails_on_several_nodes() -> None:
    cache = MountedClaim("cache", "uid", ("ReadWriteOnce",), "20Gi")
    spec = make_spec(modelCache={"claimName": "cache"})
    world = World(job=make_job(spec), inventory=make_inventory(NORTH, SOUTH))
    world.volumes = JobVolumes(model_cache=cache)
    world.settle()
    assert world.condition("Succeeded") == ("False", "ModelCacheNotShared")
    assert world.created == []


def test_a_workspace_that_is_too_small_grows_or_ends_the_job_before_the_download() -> None:
    for expandable in (True, False):
        world = World(inventory=make_inventory(make_node("gpu1", "NVIDIA-H200", 143771)))
        world.settle()
        world.run_pod("demo-prepare-0")
        storage = make_class(allowVolumeExpansion=expandable)
        world.volumes = JobVolumes(workspace(capacity="1Gi"), None, storage)
        large = {**CONFIG, "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32}
        world.progress = make_progress(Stage.PREPARE, config={**large, "num_key_value_heads": 8})
        decision = world.step()
        grown = [action for action in decision.actions if isinstance(action, ExpandClaim)]
        if expandable:
            assert [(action.name, action.uid) for action in grown] == [("demo-workspace", "claim")]
            assert world.condition("Succeeded") == ("Unknown", "Preparing")
        else:
            assert not grown
            assert world.condition("Succeeded") == ("False", "WorkspaceTooSmall")


def test_a_misplaced_workspace_is_replaced_before_the_weights_are_downloaded() -> None:
    for activity, moved in (("ProvingRows", True), ("Quantizing", False)):
        world = World(inventory=make_inventory(NORTH, SOUTH))
        world.settle()
        world.run_pod("demo-prepare-0")
        world.volumes = JobVolumes(workspace=workspace("south"), storage_class=make_class())
        world.progress = make_progress(Stage.PREPARE, activity=activity, config=CONFIG)
        decision = world.step()
        assert (DeleteClaim("demo-workspace", "claim") in decision.actions) == moved
        assert world.job.status["stage"]["jobName"] == ("demo-prepare-1" if moved else "demo-prepare-0")
        if not moved:
            continue
        assert not world.job.status.get("attempts"), "this is no failed attempt"
        world.volumes = JobVolumes(storage_class=make_class())
        world.settle()
        affinity = world.bodies["demo-prepare-1"]["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
        required = json.dumps(affinity["requiredDuringSchedulingIgnoredDuringExecution"])
        assert "north" in required
        assert "south" not in required


def test_a_replaced_claim_is_as_large_as_the_model_needs() -> None:
    world = World(
        inventory=make_inventory(make_node("north", "NVIDIA-H200", 143771, labels={ZONE: "north"}), SOUTH)
    )
    world.settle()
    world.run_pod("demo-prepare-0")
    assert world.claim is not None
    bound = replace(workspace("south"), uid=world.claim.uid)
    world.volumes = JobVolumes(workspace=bound, storage_class=make_class())
    large = {**CONFIG, "hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64}
    large |= {"num_key_value_heads": 8, "num_hidden_layers": 80}
    world.progress = make_progress(Stage.PREPARE, activity="ProvingRows", config=large)
    world.step()
    assert world.condition("Succeeded") == ("Unknown", "Preparing")
    world.volumes = JobVolumes(storage_class=make_class())
    claims = []
    for _ in range(10):
        decision = world.step()
        claims += [action.body for action in decision.actions if isinstance(action, CreateClaim)]
    (claim,) = claims
    size = parse_bytes(claim["spec"]["resources"]["requests"]["storage"])
    assert size > parse_bytes("20Gi")


def test_merge_tolerates_gpu_nodes_if_only_they_can_mount_the_workspace() -> None:
    for zone, tolerated in (("north", True), ("south", False)):
        world = World(inventory=make_inventory(NORTH, SOUTH))
        world.settle()
        world.succeed(Stage.PREPARE)
        north = JobVolumes(workspace=workspace("north"), storage_class=make_class())
        world.volumes = north
        world.settle()
        world.succeed(Stage.TRAIN)
        world.volumes = replace(north, workspace=workspace(zone))
        world.settle()
        pod = world.bodies["demo-merge-0"]["spec"]["template"]["spec"]
        keys = {toleration["key"] for toleration in pod.get("tolerations") or ()}
        assert ("nvidia.com/gpu" in keys) == tolerated


LOCAL = make_class(provisioner="rancher.io/local-path")


def rules(**blocks: Any) -> Settings:
    trainer = TrainerSettings(image="registry.example/finetune/trainer:1", device="cpu", pod_defaults=blocks)
    return Settings(trainer=trainer)


def affinity_of_prepare(world: World) -> str:
    return json.dumps(world.bodies["demo-prepare-0"]["spec"]["template"]["spec"].get("affinity"))


def test_a_gpu_on_which_train_may_not_run_does_not_place_prepare() -> None:
    south = make_node("south", labels={ZONE: "south", "pool": "tuning"})
    settings = rules(train={"nodeSelector": {"pool": "tuning"}})
    world = World(inventory=make_inventory(NORTH, south), volumes=JobVolumes(storage_class=make_class()))
    world.settings = settings
    world.settle()
    assert "south" in affinity_of_prepare(world)
    assert "north" not in affinity_of_prepare(world)


def test_the_selectors_of_cpu_stages_do_not_restrict_the_search_for_a_gpu() -> None:
    arm = {"nodeSelector": {"kubernetes.io/arch": "arm64", "kubernetes.io/os": "linux"}}
    north = make_node("north", labels={ZONE: "north", "kubernetes.io/arch": "amd64"})
    world = World(inventory=make_inventory(north), volumes=JobVolumes(storage_class=make_class()))
    world.settings = rules(prepare=arm, merge=arm)
    world.settle()
    assert world.created == ["demo-prepare-0"]
    assert "north" in affinity_of_prepare(world)
    pod = world.bodies["demo-prepare-0"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == arm["nodeSelector"]
    world.succeed(Stage.PREPARE)
    world.settle()
    assert list(world.children) == ["demo-train-0"]
    assert "nodeSelector" not in world.bodies["demo-train-0"]["spec"]["template"]["spec"]


def test_a_disk_of_a_node_that_prepare_may_not_use_stalls_the_job_with_the_rules() -> None:
    north = make_node("north", labels={"kubernetes.io/arch": "amd64"})
    east = make_node("east", labels={"kubernetes.io/arch": "arm64"})
    world = World(inventory=make_inventory(north), volumes=JobVolumes(storage_class=LOCAL))
    world.settings = rules(prepare={"nodeSelector": {"kubernetes.io/arch": "arm64"}})
    world.settle()
    assert world.condition("Stalled") == ("True", "WorkspaceZoneMismatch")
    (message,) = (entry["message"] for entry in world.job.status["conditions"] if entry["type"] == "Stalled")
    assert "trainer.podDefaults.prepare.nodeSelector" in message
    assert world.created == []
    world.inventory = make_inventory(north, east)
    world.settle()
    assert "east" in affinity_of_prepare(world)
    assert "north" not in affinity_of_prepare(world)


def test_a_zone_that_merge_may_not_use_is_not_chosen_for_the_workspace() -> None:
    south = make_node("south", labels={ZONE: "south"})
    world = World(inventory=make_inventory(NORTH, south), volumes=JobVolumes(storage_class=make_class()))
    world.settings = rules(merge={"nodeSelector": {ZONE: "south"}})
    world.settle()
    assert "north" not in affinity_of_prepare(world)
    world = World(inventory=make_inventory(NORTH), volumes=JobVolumes(storage_class=make_class()))
    world.settings = rules(merge={"nodeSelector": {ZONE: "south"}})
    world.settle()
    assert world.condition("Stalled") == ("True", "WorkspaceZoneMismatch")


def test_prepare_tolerates_gpu_nodes_if_it_may_not_use_the_other_nodes_of_the_zone() -> None:
    north = replace(SOUTH, name="cpu", labels={"kubernetes.io/hostname": "cpu", ZONE: "north"})
    for taints, tolerated in (((), False), (({"key": "control", "effect": "NoSchedule"},), True)):
        world = World(inventory=make_inventory(NORTH, replace(north, taints=taints)))
        world.settings = rules()
        world.volumes = JobVolumes(storage_class=make_class())
        world.settle()
        pod = world.bodies["demo-prepare-0"]["spec"]["template"]["spec"]
        assert ("tolerations" in pod) == tolerated
