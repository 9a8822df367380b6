"""Reads the claims of one job and their volumes, which no watch covers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

from finetune_operator.api.stages import Stage, workspace_claim_name
from finetune_operator.cluster.resources import Cluster
from finetune_operator.errors import ApiError
from finetune_operator.observed.observation import JobRecord, Observation
from finetune_operator.placement.storage import (
    JobVolumes,
    MountedClaim,
    StorageClass,
    VolumeRecord,
    find_storage_class,
    project_storage_class,
    project_volume,
)

CLASSES_SECONDS = 60.0
"""Time for which StorageClasses are cached: they hardly ever change, and a thousand jobs may start at once."""

_logger = logging.getLogger(__name__)


class VolumeReader:
    """Reads on demand. An object that the operator may not read counts as missing."""

    def __init__(self, cluster: Cluster, clock: Callable[[], float]) -> None:
        """`clock` is monotonic, in seconds."""
        self._cluster = cluster
        self._clock = clock
        self._classes: list[StorageClass] = []
        self._classes_expiry = 0.0
        self._forbidden: set[str] = set()

    async def read(self, observation: Observation) -> JobVolumes:
        """Read the present claims of the observed job."""
        job = observation.job
        workspace_spec: Mapping[str, Any] = job.spec.get("workspace") or {}
        cache_name = (job.spec.get("modelCache") or {}).get("claimName")
        existing = workspace_spec.get("existingClaim")
        workspace, class_name = None, workspace_spec.get("storageClassName")
        if existing or observation.claim is not None:
            body = await self._cluster.read_claim(job.namespace, existing or workspace_claim_name(job.name))
            if body is not None:
                workspace = await self._mounted(body)
                class_name = body["spec"].get("storageClassName", class_name)
        cache = None
        if cache_name:
            body = await self._cluster.read_claim(job.namespace, cache_name)
            cache = None if body is None else await self._mounted(body)
        read_only = [] if cache is None or not _is_read_only(cache.access_modes) else [cache.name]
        modes = {name: await self._access_modes(job.namespace, name) for name in _source_claims(job)}
        read_only += [name for name, found in modes.items() if _is_read_only(found)]
        storage_class = find_storage_class(class_name, await self._storage_classes())
        return JobVolumes(workspace, cache, storage_class, tuple(read_only))

    async def _mounted(self, body: Mapping[str, Any]) -> MountedClaim:
        spec, status = body["spec"], body.get("status") or {}
        name = spec.get("volumeName")
        return MountedClaim(
            name=body["metadata"]["name"],
            uid=body["metadata"]["uid"],
            access_modes=tuple(spec.get("accessModes") or ()),
            # The request may exceed the capacity while the volume is being enlarged.
            capacity=((spec.get("resources") or {}).get("requests") or {}).get("storage")
            if status.get("phase") == "Bound"
            else None,
            volume=await self._volume(name) if name else None,
        )

    async def _access_modes(self, namespace: str, name: str) -> tuple[str, ...]:
        try:
            body = await self._cluster.read_claim(namespace, name)
        except ApiError as error:
            self._note_forbidden(error, "persistentvolumeclaims")
            return ()
        return tuple(((body or {}).get("spec") or {}).get("accessModes") or ())

    async def _volume(self, name: str) -> VolumeRecord | None:
        try:
            body = await self._cluster.read_volume(name)
        except ApiError as error:
            self._note_forbidden(error, "persistentvolumes")
            return None
        return None if body is None else project_volume(body)

    async def _storage_classes(self) -> list[StorageClass]:
        if self._clock() >= self._classes_expiry:
            try:
                bodies = await self._cluster.list_storage_classes()
            except ApiError as error:
                self._note_forbidden(error, "storageclasses")
                bodies = []
            self._classes = [project_storage_class(body) for body in bodies]
            self._classes_expiry = self._clock() + CLASSES_SECONDS
        return self._classes

    def _note_forbidden(self, error: ApiError, resource: str) -> None:
        """Log once that `resource` may not be read; any other failure is raised again."""
        if error.status != 403:
            raise error
        if resource not in self._forbidden:
            self._forbidden.add(resource)
            _logger.warning("%s may not be read, so pods are placed without them: %s", resource, error)


def _source_claims(job: JobRecord) -> list[str]:
    """The claims that hold the model and the rows. Only PREPARE mounts them."""
    if (job.status.get("stage") or {}).get("name", Stage.PREPARE) != Stage.PREPARE:
        return []
    dataset: Mapping[str, Any] = job.spec.get("dataset") or {}
    owners = (job.spec.get("model"), dataset, dataset.get("validation"))
    sources = ((owner or {}).get("source") or {} for owner in owners)
    names = ((source.get("persistentVolumeClaim") or {}).get("claimName") for source in sources)
    return list(dict.fromkeys(name for name in names if name))


def _is_read_only(access_modes: Collection[str]) -> bool:
    """True if nobody can write to a claim with these access modes."""
    return set(access_modes) == {"ReadOnlyMany"}
