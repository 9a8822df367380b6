from __future__ import annotations

from typing import Any

from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.stages import WORK_STAGES, Stage
from finetune_operator.manifests.volumes import Volumes
from finetune_operator.sizing.hosts import HostNeeds

from tests.support.operator import UID, make_job, make_spec

HOST = HostNeeds("2", 8 * 2**30, "because", 2**28, 2**30)
SHARED = make_spec(
    modelCache={"claimName": "bases"},
    dataset={
        "source": {"configMap": {"name": "rows", "key": "train.jsonl"}},
        "targetPrompts": {"configMapKeyRef": {"name": "production", "key": "prompts.txt"}},
    },
)


def build(spec: dict[str, Any], stage: Stage, *read_only: str) -> Volumes:
    return Volumes(make_job(spec), FineTuneJobSpec.parse(spec), stage, HOST, read_only)


def mounts(spec: dict[str, Any], stage: Stage) -> dict[str, dict[str, Any]]:
    return {mount["mountPath"]: mount for mount in build(spec, stage).mounts}


def volumes(spec: dict[str, Any], stage: Stage) -> dict[str, dict[str, Any]]:
    return {volume["name"]: volume for volume in build(spec, stage).volumes}


def test_prepare_writes_the_model_cache_and_the_others_read_it() -> None:
    assert "readOnly" not in mounts(SHARED, Stage.PREPARE)["/model-cache"]
    for stage in (Stage.TRAIN, Stage.MERGE):
        assert mounts(SHARED, stage)["/model-cache"]["readOnly"] is True
    claims = [volume.get("persistentVolumeClaim") for volume in volumes(SHARED, Stage.TRAIN).values()]
    assert {"claimName": "bases"} in claims


def test_train_may_add_compiled_kernels_to_the_claim_of_the_model_cache() -> None:
    name = "FINETUNE_COMPILE_CACHE"
    (mount,) = (each for each in build(SHARED, Stage.TRAIN).mounts if each["mountPath"] == "/compile-cache")
    assert mount == {"name": "model-cache", "mountPath": "/compile-cache"}
    assert build(SHARED, Stage.TRAIN).variables == [{"name": name, "value": "/compile-cache/compiled"}]
    for spec, stage, read_only in (
        (SHARED, Stage.PREPARE, ()),
        (SHARED, Stage.MERGE, ()),
        (SHARED, Stage.TRAIN, ("bases",)),
        (make_spec(), Stage.TRAIN, ()),
    ):
        built = build(spec, stage, *read_only)
        assert built.variables == []
        assert "/compile-cache" not in {each["mountPath"] for each in built.mounts}


def test_target_prompts_are_mounted_in_prepare_only() -> None:
    assert mounts(SHARED, Stage.PREPARE)["/source/target-prompts"]["readOnly"] is True
    assert "/source/target-prompts" not in mounts(SHARED, Stage.TRAIN)


def test_sources_are_mounted_read_only_and_in_prepare_only() -> None:
    spec = make_spec()
    assert mounts(spec, Stage.PREPARE)["/source/model"]["readOnly"] is True
    assert mounts(spec, Stage.PREPARE)["/source/dataset"]["readOnly"] is True
    mounted = {stage: {mount["name"] for mount in mounts(spec, stage).values()} for stage in WORK_STAGES}
    assert mounted[Stage.TRAIN] == {"run-spec", "tmp", "workspace", "shared-memory"}
    assert mounted[Stage.MERGE] == {"run-spec", "tmp", "workspace", "output"}


def test_the_signing_key_is_mounted_in_merge_only_and_its_secret_may_be_missing() -> None:
    """A pod that waits for a Secret says nothing. The trainer names it and waits."""
    spec = make_spec(
        output={
            "destination": {"persistentVolumeClaim": {"claimName": "artifacts"}},
            "signing": {"keySecretRef": {"name": "model-signing", "key": "signing.key"}},
        }
    )
    for stage in (Stage.PREPARE, Stage.TRAIN):
        assert "signing-key" not in volumes(spec, stage)
    assert volumes(spec, Stage.MERGE)["signing-key"]["secret"] == {
        "secretName": "model-signing",
        "items": [{"key": "signing.key", "path": "signing.key"}],
        "optional": True,
    }
    assert mounts(spec, Stage.MERGE)["/source/signing"]["readOnly"] is True
    assert "signing-key" not in volumes(make_spec(), Stage.MERGE)


def test_one_claim_with_several_roles_is_one_volume() -> None:
    spec = make_spec(
        model={"source": {"persistentVolumeClaim": {"claimName": "data"}}},
        output={"destination": {"persistentVolumeClaim": {"claimName": "data"}}},
    )
    claims = [v for v in volumes(spec, Stage.PREPARE).values() if "persistentVolumeClaim" in v]
    assert sorted(volume["persistentVolumeClaim"]["claimName"] for volume in claims) == [
        "data",
        "demo-workspace",
    ]
    names = set(volumes(spec, Stage.PREPARE))
    assert {mount["name"] for mount in mounts(spec, Stage.PREPARE).values()} <= names


def test_jobs_that_share_an_existing_workspace_get_a_folder_each() -> None:
    shared = make_spec(workspace={"existingClaim": "shared"})
    assert mounts(shared, Stage.TRAIN)["/workspace"]["subPath"] == UID
    assert volumes(shared, Stage.TRAIN)["workspace"]["persistentVolumeClaim"] == {"claimName": "shared"}
    assert "subPath" not in mounts(make_spec(), Stage.TRAIN)["/workspace"]


def test_the_run_spec_is_mounted_read_only_in_every_stage() -> None:
    for stage in WORK_STAGES:
        assert mounts(make_spec(), stage)["/etc/finetune"]["readOnly"] is True
        (item,) = volumes(make_spec(), stage)["run-spec"]["downwardAPI"]["items"]
        assert item["fieldRef"]["fieldPath"] == "metadata.annotations['finetune.dev/run']"


def claims(built: Volumes) -> dict[str, bool]:
    """Each claim, and whether it is attached read-only."""
    sources = [
        volume["persistentVolumeClaim"] for volume in built.volumes if "persistentVolumeClaim" in volume
    ]
    return {source["claimName"]: source.get("readOnly", False) for source in sources}


def test_only_claims_that_nobody_can_write_to_are_attached_read_only() -> None:
    """A driver refuses to attach a ReadOnlyMany volume for writing. Other volumes may be in use on the same node."""
    assert claims(build(make_spec(), Stage.PREPARE)) == {
        "models": False,
        "demo-workspace": False,
        "artifacts": False,
    }
    assert claims(build(make_spec(), Stage.PREPARE, "models"))["models"]


def test_a_read_only_cache_is_mounted_read_only_by_prepare_too() -> None:
    built = build(SHARED, Stage.PREPARE, "bases")
    (mount,) = (item for item in built.mounts if item["mountPath"] == "/model-cache")
    assert mount["readOnly"] is True
    assert claims(built)["bases"]
    assert claims(build(SHARED, Stage.TRAIN, "bases"))["bases"]


def test_a_claim_that_is_also_written_to_is_never_attached_read_only() -> None:
    spec = make_spec(
        model={"source": {"persistentVolumeClaim": {"claimName": "data"}}},
        output={"destination": {"persistentVolumeClaim": {"claimName": "data"}}},
    )
    assert not claims(build(spec, Stage.PREPARE, "data"))["data"]
