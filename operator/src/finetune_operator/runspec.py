"""FineTuneJob to run spec (contract/run.schema.json): used by the operator and by the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from finetune_operator.model import DatasetSource, FineTuneJobSpec
from finetune_operator.planning import Device, Plan

CONTRACT_VERSION = "1.0"

DATASET_URL_VARIABLE = "FINETUNE_DATASET_URL"
VALIDATION_URL_VARIABLE = "FINETUNE_VALIDATION_URL"
MODEL_TOKEN_VARIABLE = "FINETUNE_MODEL_TOKEN"  # noqa: S105 - the variable's name, not a token

MODEL_MOUNT = "/source/model"
DATASET_MOUNT = "/source/dataset"
VALIDATION_MOUNT = "/source/validation"
CHAT_TEMPLATE_MOUNT = "/source/chat-template"
OUTPUT_MOUNT = "/output"
WORKSPACE_MOUNT = "/workspace"


@dataclass(frozen=True)
class JobIdentity:
    """Whose run it is. The command line, which has no API server, makes a uid of its own."""

    namespace: str
    name: str
    uid: str


@dataclass(frozen=True)
class Limits:
    """What the administrator allows a download."""

    dataset_bytes: int
    download_seconds: int
    allow_private_addresses: bool


@dataclass(frozen=True)
class Places:
    """Where the trainer process finds things: absolute paths on its own file system.

    `model`, `dataset` and `validation` are None where the source is a hub or a URL, `chat_template` where the model's
    own is used. `output_uri` is how people call the output's place.
    """

    workspace: str
    output: str
    output_uri: str
    model: str | None = None
    dataset: str | None = None
    validation: str | None = None
    chat_template: str | None = None


def cluster_places(job: JobIdentity, spec: FineTuneJobSpec) -> Places:
    """Places inside a stage's pod, as jobs.py mounts them."""
    claim = spec.output.destination.persistent_volume_claim
    output_path = job.name if claim.path is None else claim.path
    model_claim = spec.model.source.persistent_volume_claim
    template = spec.model.chat_template
    validation = spec.dataset.validation.source
    return Places(
        workspace=WORKSPACE_MOUNT,
        output=_join(OUTPUT_MOUNT, output_path),
        output_uri=f"pvc://{job.namespace}/{_join(claim.claim_name, output_path)}",
        model=None if model_claim is None else _join(MODEL_MOUNT, model_claim.path),
        dataset=_dataset_place(spec.dataset.source, DATASET_MOUNT),
        validation=None if validation is None else _dataset_place(validation, VALIDATION_MOUNT),
        chat_template=None
        if template is None
        else _join(CHAT_TEMPLATE_MOUNT, template.config_map_key_ref.key),
    )


def build_run_spec(
    *,
    job: JobIdentity,
    spec: FineTuneJobSpec,
    spec_hash: str,
    plan: Plan,
    places: Places,
    device: Device,
    limits: Limits,
    telemetry_port: int,
    attempt: int,
) -> dict[str, Any]:
    """The run spec of one attempt, ready for JSON.

    `spec` must have passed checks.check, and `places` must name a path for every source that is a file. One document
    serves all three stages.
    """
    training = spec.training
    length = {"epochs": plan.epochs} if plan.maximum_steps is None else {"maximumSteps": plan.maximum_steps}
    return {
        "version": CONTRACT_VERSION,
        "job": {"namespace": job.namespace, "name": job.name, "uid": job.uid},
        "specHash": spec_hash,
        "attempt": attempt,
        "device": device,
        "model": _model(spec, places),
        "dataset": _dataset(spec, places),
        "training": {
            **length,
            "learningRate": training.learning_rate,
            "effectiveBatchSize": training.effective_batch_size,
            "microBatchSize": plan.micro_batch_size,
            "maximumLength": training.maximum_length,
            "lora": training.lora.model_dump(by_alias=True),
            "quantization": training.quantization,
            "seed": training.seed,
            "schedule": training.schedule.model_dump(by_alias=True),
            "gradientCheckpointing": plan.gradient_checkpointing,
            "checkpoint": training.checkpoint.model_dump(by_alias=True),
        },
        "evaluation": {"maximumRows": spec.evaluation.maximum_rows},
        "output": {
            "artifacts": list(spec.output.artifacts),
            "destination": {"kind": "Directory", "path": places.output, "uri": places.output_uri},
        },
        "workspace": {"path": places.workspace},
        "telemetry": {"port": telemetry_port},
        "limits": {
            "datasetBytes": limits.dataset_bytes,
            "downloadSeconds": limits.download_seconds,
            "allowPrivateAddresses": limits.allow_private_addresses,
        },
    }


def _model(spec: FineTuneJobSpec, places: Places) -> dict[str, Any]:
    hub = spec.model.source.hugging_face
    source: dict[str, Any]
    if hub is None:
        source = {"kind": "Directory", "path": _required(places.model, "model")}
    else:
        source = {"kind": "HuggingFace", "repository": hub.repository, "revision": hub.revision}
        if hub.token_secret_ref is not None:
            source["tokenVariable"] = MODEL_TOKEN_VARIABLE
    model: dict[str, Any] = {
        "source": source,
        "chatTemplateArguments": dict(spec.model.chat_template_arguments),
    }
    if spec.model.chat_template is not None:
        model["chatTemplatePath"] = _required(places.chat_template, "chat_template")
    return model


def _dataset(spec: FineTuneJobSpec, places: Places) -> dict[str, Any]:
    dataset = spec.dataset
    validation: dict[str, Any]
    if dataset.validation.source is None:
        validation = {"fraction": dataset.validation.fraction}
    else:
        place = _dataset_source(dataset.validation.source, places.validation, VALIDATION_URL_VARIABLE)
        validation = {"source": place}
    return {
        "source": _dataset_source(dataset.source, places.dataset, DATASET_URL_VARIABLE),
        "validation": validation,
        "reasoning": dataset.reasoning,
        "rejectedRows": {"maximumFraction": dataset.rejected_rows.maximum_fraction},
    }


def _dataset_source(source: DatasetSource, place: str | None, variable: str) -> dict[str, str]:
    if source.url is not None:
        return {"kind": "Url", "urlVariable": variable}
    return {"kind": "File", "path": _required(place, "dataset")}


def _dataset_place(source: DatasetSource, mount: str) -> str | None:
    if source.config_map is not None:
        return _join(mount, source.config_map.key)
    if source.persistent_volume_claim is not None:
        return _join(mount, source.persistent_volume_claim.path)
    return None


def _join(root: str, path: str) -> str:
    """`path` below `root`, without empty or `.` steps."""
    return str(PurePosixPath(root) / path)


def _required(place: str | None, name: str) -> str:
    if place is None:
        raise ValueError(f"places.{name} must be a path for this source, found None")
    return place
