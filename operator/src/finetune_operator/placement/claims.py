"""The claims that the stages of a job mount, as the API server shows them."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_operator.placement.storage import StorageClass, VolumeRecord


@dataclass(frozen=True)
class MountedClaim:
    """A claim that the stages mount; `volume` is None until it is bound, or where volumes may not be read."""

    name: str
    uid: str
    access_modes: tuple[str, ...] = ()
    capacity: str | None = None
    volume: VolumeRecord | None = None


@dataclass(frozen=True)
class JobVolumes:
    """The claims of a job as they are now, each None where there is none, and the class of its workspace."""

    workspace: MountedClaim | None = None
    model_cache: MountedClaim | None = None
    storage_class: StorageClass | None = None
