"""Builds the volumes of a stage's pod and their mounts in its container."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from finetune_operator.api.quantities import format_bytes
from finetune_operator.api.sources import DatasetSource, KeyRef
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.stages import RUN_ANNOTATION, Stage, workspace_claim_name
from finetune_operator.contract.mounts import (
    CHAT_TEMPLATE_MOUNT,
    COMPILE_CACHE_MOUNT,
    COMPILE_CACHE_VARIABLE,
    DATASET_MOUNT,
    DESTINATIONS_MOUNT,
    MODEL_CACHE_MOUNT,
    MODEL_MOUNT,
    OUTPUT_MOUNT,
    SIGNING_MOUNT,
    TARGET_PROMPTS_MOUNT,
    VALIDATION_MOUNT,
    WORKSPACE_MOUNT,
)
from finetune_operator.contract.network import CA_MOUNT, MountedBundle
from finetune_operator.observed.observation import JobRecord
from finetune_operator.sizing.hosts import HostNeeds

RUN_SPEC_FOLDER = "/etc/finetune"
_COMPILED = "compiled"
"""Folder of the model cache's claim for compiled kernels."""


class Volumes:
    """Volumes and mounts of one stage. A claim with several roles is one volume with several mounts."""

    def __init__(
        self,
        job: JobRecord,
        spec: FineTuneJobSpec,
        stage: Stage,
        host: HostNeeds,
        read_only_claims: Collection[str] = (),
        bundles: Sequence[MountedBundle] = (),
    ) -> None:
        """`read_only_claims` are the claims that nobody can write to, which must be attached read-only."""
        self.volumes: list[dict[str, Any]] = []
        self.mounts: list[dict[str, Any]] = []
        self._claims: dict[str, str] = {}
        self._mount(
            "run-spec",
            RUN_SPEC_FOLDER,
            {
                "downwardAPI": {
                    "items": [
                        {
                            "path": "run.json",
                            "fieldRef": {"fieldPath": f"metadata.annotations['{RUN_ANNOTATION}']"},
                        }
                    ]
                }
            },
            read_only=True,
        )
        self._mount("tmp", "/tmp", {"emptyDir": {"sizeLimit": format_bytes(host.scratch_bytes)}})  # noqa: S108 - the pod's own
        self._workspace(job, spec)
        for bundle in bundles:
            self._bundle(bundle)
        if stage is Stage.PREPARE:
            self._sources(spec)
        if stage is Stage.MERGE and spec.output.signing is not None:
            self._signing_key(spec.output.signing.key_secret_ref)
        if stage is Stage.TRAIN:
            # Data loaders and NCCL share memory; the default of 64 MiB is too little.
            shared = {"medium": "Memory", "sizeLimit": format_bytes(host.shared_memory_bytes)}
            self._mount("shared-memory", "/dev/shm", {"emptyDir": shared})  # noqa: S108 - same
        elif stage is not Stage.REPORT or spec.output.reports is not None:
            for name, claim in spec.output.claims.items():
                mount = f"{DESTINATIONS_MOUNT}/{name}" if name else OUTPUT_MOUNT
                self._claim(f"destination-{name}" if name else "output", mount, claim.claim_name)
        if spec.model_cache is not None and stage is not Stage.REPORT:
            # PREPARE fills it unless somebody else has. The other stages only read it.
            cache = spec.model_cache.claim_name
            read_only = stage is not Stage.PREPARE or cache in read_only_claims
            self._claim("model-cache", MODEL_CACHE_MOUNT, cache, read_only=read_only)
            if stage is Stage.TRAIN and cache not in read_only_claims:
                # TRAIN adds compiled kernels. A sub path would end a pod where the kubelet cannot make the folder.
                self._claim("model-cache", COMPILE_CACHE_MOUNT, cache)
        self._attach_read_only(read_only_claims)

    def mounts_of_stage(self) -> list[dict[str, Any]]:
        """The mounts of a container that does a stage's work: all but the claims that only copies go to."""
        return [mount for mount in self.mounts if not mount["mountPath"].startswith(f"{DESTINATIONS_MOUNT}/")]

    def mounts_of_step(self) -> list[dict[str, Any]]:
        """The mounts of a container that tries or fills destinations or tells trackers: no source, cache or key of another step."""
        own = (RUN_SPEC_FOLDER, "/tmp", WORKSPACE_MOUNT)  # noqa: S108 -- the pod's own emptyDir
        folders = (f"{DESTINATIONS_MOUNT}/", f"{CA_MOUNT}/")
        # The claim of the only destination has the manifest whose digest the trackers get.
        return [
            {**mount, "readOnly": True} if mount["mountPath"] == OUTPUT_MOUNT else mount
            for mount in self.mounts
            if mount["mountPath"] in (*own, OUTPUT_MOUNT) or mount["mountPath"].startswith(folders)
        ]

    @property
    def variables(self) -> list[dict[str, Any]]:
        """Environment variables that name mounts."""
        mounted = any(mount["mountPath"] == COMPILE_CACHE_MOUNT for mount in self.mounts)
        return (
            [{"name": COMPILE_CACHE_VARIABLE, "value": f"{COMPILE_CACHE_MOUNT}/{_COMPILED}"}]
            if mounted
            else []
        )

    def _workspace(self, job: JobRecord, spec: FineTuneJobSpec) -> None:
        existing = spec.workspace.existing_claim
        if existing is None:
            self._claim("workspace", WORKSPACE_MOUNT, workspace_claim_name(job.name))
        else:
            # Each job that shares a claim gets its own folder. A later job of the same name has another uid.
            self._claim("workspace", WORKSPACE_MOUNT, existing, sub_path=job.uid)

    def _sources(self, spec: FineTuneJobSpec) -> None:
        model = spec.model.source.persistent_volume_claim
        if model is not None:
            self._claim("model", MODEL_MOUNT, model.claim_name, read_only=True)
        self._dataset("dataset", DATASET_MOUNT, spec.dataset.source)
        if spec.dataset.validation.source is not None:
            self._dataset("validation", VALIDATION_MOUNT, spec.dataset.validation.source)
        if spec.model.chat_template is not None:
            reference = spec.model.chat_template.config_map_key_ref
            self._config_map("chat-template", CHAT_TEMPLATE_MOUNT, reference)
        if spec.dataset.target_prompts is not None:
            reference = spec.dataset.target_prompts.config_map_key_ref
            self._config_map("target-prompts", TARGET_PROMPTS_MOUNT, reference)

    def _dataset(self, name: str, path: str, source: DatasetSource) -> None:
        if source.config_map is not None:
            self._config_map(name, path, source.config_map)
        elif source.persistent_volume_claim is not None:
            self._claim(name, path, source.persistent_volume_claim.claim_name, read_only=True)

    def _bundle(self, mounted: MountedBundle) -> None:
        reference = mounted.reference
        items = [{"key": reference.key, "path": reference.key}]
        # Without a required object the pod would wait silently. The trainer says what is missing.
        source: dict[str, Any] = {"secret": {"secretName": reference.name, "items": items, "optional": True}}
        if mounted.bundle.config_map_key_ref is not None:
            source = {"configMap": {"name": reference.name, "items": items, "optional": True}}
        self._mount(mounted.name, mounted.mount, source, read_only=True)

    def _signing_key(self, reference: KeyRef) -> None:
        # Without a required Secret the pod would wait silently. The trainer says what is missing.
        items = [{"key": reference.key, "path": reference.key}]
        secret = {"secretName": reference.name, "items": items, "optional": True}
        self._mount("signing-key", SIGNING_MOUNT, {"secret": secret}, read_only=True)

    def _config_map(self, name: str, path: str, reference: KeyRef) -> None:
        item = {"key": reference.key, "path": reference.key}
        self._mount(name, path, {"configMap": {"name": reference.name, "items": [item]}}, read_only=True)

    def _claim(
        self, name: str, path: str, claim: str, *, read_only: bool = False, sub_path: str | None = None
    ) -> None:
        volume = self._claims.get(claim)
        if volume is None:
            self._claims[claim] = volume = name
            self.volumes.append({"name": name, "persistentVolumeClaim": {"claimName": claim}})
        self._add_mount(volume, path, read_only=read_only, sub_path=sub_path)

    def _attach_read_only(self, claims: Collection[str]) -> None:
        """Attach `claims` read-only unless they are mounted for writing: drivers refuse to attach them otherwise."""
        written = {mount["name"] for mount in self.mounts if not mount.get("readOnly")}
        for volume in self.volumes:
            source = volume.get("persistentVolumeClaim")
            if source is not None and source["claimName"] in claims and volume["name"] not in written:
                source["readOnly"] = True

    def _mount(self, name: str, path: str, source: dict[str, Any], *, read_only: bool = False) -> None:
        self.volumes.append({"name": name, **source})
        self._add_mount(name, path, read_only=read_only)

    def _add_mount(self, volume: str, path: str, *, read_only: bool, sub_path: str | None = None) -> None:
        mount: dict[str, Any] = {"name": volume, "mountPath": path}
        if read_only:
            mount["readOnly"] = True
        if sub_path is not None:
            mount["subPath"] = sub_path
        self.mounts.append(mount)
