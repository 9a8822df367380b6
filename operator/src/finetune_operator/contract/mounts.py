"""Where the trainer finds its files: the mounts of a stage's pod, and the paths that a run spec names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from finetune_operator.api.sources import DatasetSource
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.contract.identity import JobIdentity

MODEL_MOUNT = "/source/model"
DATASET_MOUNT = "/source/dataset"
VALIDATION_MOUNT = "/source/validation"
CHAT_TEMPLATE_MOUNT = "/source/chat-template"
TARGET_PROMPTS_MOUNT = "/source/target-prompts"
SIGNING_MOUNT = "/source/signing"
MODEL_CACHE_MOUNT = "/model-cache"
COMPILE_CACHE_MOUNT = "/compile-cache"
COMPILE_CACHE_VARIABLE = "FINETUNE_COMPILE_CACHE"
"""Names the folder of compiled kernels to TRAIN."""
OUTPUT_MOUNT = "/output"
DESTINATIONS_MOUNT = "/destinations"
"""Folder with a mount for each claim of `output.destinations`, by name."""
WORKSPACE_MOUNT = "/workspace"
ARTIFACTS_FOLDER = "artifacts"
"""Folder of the workspace to which MERGE publishes what is then copied to `output.destinations`."""


@dataclass(frozen=True)
class MountPaths:
    """Absolute paths on the trainer's file system.

    `model`, `dataset` and `validation` are None if the source is a hub, a URL or an object store. `chat_template` is None
    if the model brings its chat template. `output_uri` names the output folder for people. With `output.destinations`, the
    output folder is in the workspace, and `destinations` has path and URI of each claim among them by name.
    """

    workspace: str
    output: str
    output_uri: str
    model: str | None = None
    dataset: str | None = None
    validation: str | None = None
    chat_template: str | None = None
    target_prompts: str | None = None
    model_cache: str | None = None
    signing_key: str | None = None
    destinations: Mapping[str, tuple[str, str]] = field(default_factory=dict)


def pod_paths(job: JobIdentity, spec: FineTuneJobSpec) -> MountPaths:
    """The paths inside a stage's pod, as manifests/volumes.py mounts them."""
    folders = {
        name: (
            _join(f"{DESTINATIONS_MOUNT}/{name}" if name else OUTPUT_MOUNT, claim.folder(job.name)),
            f"pvc://{job.namespace}/{_join(claim.claim_name, claim.folder(job.name))}",
        )
        for name, claim in spec.output.claims.items()
    }
    only = folders.pop("", None)
    output, output_uri = only or (
        f"{WORKSPACE_MOUNT}/{ARTIFACTS_FOLDER}",
        first_destination(spec, folders),
    )
    model_claim = spec.model.source.persistent_volume_claim
    template, prompts = spec.model.chat_template, spec.dataset.target_prompts
    validation = spec.dataset.validation.source
    return MountPaths(
        workspace=WORKSPACE_MOUNT,
        output=output,
        output_uri=output_uri,
        destinations=folders,
        model=None if model_claim is None else _join(MODEL_MOUNT, model_claim.path),
        dataset=_dataset_path(spec.dataset.source, DATASET_MOUNT),
        validation=None if validation is None else _dataset_path(validation, VALIDATION_MOUNT),
        chat_template=None
        if template is None
        else _join(CHAT_TEMPLATE_MOUNT, template.config_map_key_ref.key),
        target_prompts=None
        if prompts is None
        else _join(TARGET_PROMPTS_MOUNT, prompts.config_map_key_ref.key),
        model_cache=None if spec.model_cache is None else MODEL_CACHE_MOUNT,
        signing_key=None
        if spec.output.signing is None
        else _join(SIGNING_MOUNT, spec.output.signing.key_secret_ref.key),
    )


def first_destination(spec: FineTuneJobSpec, folders: Mapping[str, tuple[str, str]]) -> str:
    """The URI of the first of `output.destinations`, which stands for all of them in the names of artifacts."""
    entry = (spec.output.destinations or ())[0]
    if entry.oci is not None:
        return f"oci://{entry.oci.reference}"
    if entry.hugging_face is not None:
        return entry.hugging_face.uri
    store = entry.object_store
    return store.uri if store is not None else folders[entry.name][1]


def _dataset_path(source: DatasetSource, mount: str) -> str | None:
    if source.config_map is not None:
        return _join(mount, source.config_map.key)
    if source.persistent_volume_claim is not None:
        return _join(mount, source.persistent_volume_claim.path)
    return None


def _join(root: str, path: str) -> str:
    """`path` below `root`, without empty or `.` components."""
    return str(PurePosixPath(root) / path)
