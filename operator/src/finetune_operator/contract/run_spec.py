"""Translate a FineTuneJob into a run spec (contract/run.schema.json), for the operator and for the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic.alias_generators import to_camel

from finetune_operator.api.destinations import HubRepository, NamedDestination
from finetune_operator.api.network import DEFAULT_RETRY_SECONDS
from finetune_operator.api.plan import DEFAULT_OPTIMIZER, DEFAULT_WEIGHTS, Device, Layout, Plan, Rung
from finetune_operator.api.sources import (
    CloudObject,
    DatasetSource,
    HuggingFaceDataset,
    HuggingFaceModel,
    S3Object,
)
from finetune_operator.api.spec import (
    DEFAULT_GENERATED_ROWS,
    DEFAULT_MINIMUM_ROWS,
    Evaluation,
    FineTuneJobSpec,
    Thresholds,
    Training,
)
from finetune_operator.contract.credentials import (
    DATASET_PREFIX,
    MODEL_PREFIX,
    VALIDATION_PREFIX,
    destination_prefix,
    token_variable,
    url_variable,
)
from finetune_operator.contract.identity import JobIdentity
from finetune_operator.contract.mounts import MountPaths
from finetune_operator.contract.tracking import Trackers, tracking_document

CONTRACT_VERSION = "1.13"
LADDER_SINCE = 5
"""Minor version of the first trainer that reads a ladder. An earlier one rejects it, and no job asks for it by name."""
RATE_REASON_SINCE = 6
"""The same of the reason for the learning rate."""
OPTIMIZER_SINCE = 7
"""The same of `training.optimizer` and `training.weights`, in the ladder's rungs, too."""
TRACKING_SINCE = 9
"""The same of the administrator's trackers. A job's own trackers are sent to every trainer."""
FAILED_RUNS_SINCE = 10
"""The first minor version whose step Report tells trackers of a job that has failed."""
RANKS_SINCE = 12
"""The same of `ranks` and `training.parallelism`. A job that asks for several GPUs sends them to every trainer."""
ESTIMATE_SINCE = 9
"""The same of the estimated memory, which only the report shows."""
_ESTIMATE = ("peakBytes", "deviceBytes", "lowBytes", "highBytes", "bottleneck")
GIVEN_RATE = "set by training.learningRate"
_LONGEST_REASON = 1024


@dataclass(frozen=True)
class Limits:
    """The administrator's limits on downloads, and the seconds to wait for a server in an outage."""

    dataset_bytes: int
    download_seconds: int
    allow_private_addresses: bool
    retry_seconds: int = DEFAULT_RETRY_SECONDS


def build_run_spec(
    *,
    job: JobIdentity,
    spec: FineTuneJobSpec,
    spec_hash: str,
    plan: Plan,
    paths: MountPaths,
    device: Device,
    limits: Limits,
    telemetry_port: int,
    attempt: int,
    explains_rate: bool = False,
    trackers: Trackers | None = None,
    estimate: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Build the run spec of one attempt, ready for JSON.

    `spec` must have passed validation.check, and `paths` must name a path for every source that is a file. One document
    serves all three stages. A member that is new in a minor version is left out if it has its default. So a trainer of
    the previous minor version can read every job that it supports. The reason for the learning rate has no default, so it
    is left out unless the document `explains_rate`. `estimate` is the estimated memory as the status has it. Raises
    ValueError if a path is missing.
    """
    return {
        "version": CONTRACT_VERSION,
        "job": {"namespace": job.namespace, "name": job.name, "uid": job.uid},
        "specHash": spec_hash,
        "attempt": attempt,
        "device": device,
        "model": _model(spec, paths),
        "dataset": _dataset(spec, paths),
        "training": training_member(spec.training, plan, device, explains_rate=explains_rate),
        "evaluation": _evaluation(spec.evaluation),
        "output": {
            "artifacts": list(spec.output.artifacts),
            "destination": {"kind": "Directory", "path": paths.output, "uri": paths.output_uri},
            **_destinations(spec, paths),
            **({} if spec.output.dtype == "BFloat16" else {"dtype": spec.output.dtype}),
            **({} if spec.output.merge_onto == "TrainedWeights" else {"mergeOnto": spec.output.merge_onto}),
            **(
                {}
                if spec.output.signing is None
                else {"signing": {"keyPath": _required(paths.signing_key, "signing_key")}}
            ),
        },
        "workspace": {"path": paths.workspace},
        **_ranks(plan.layout),
        **(
            {}
            if spec.model_cache is None
            else {"modelCache": {"path": _required(paths.model_cache, "model_cache")}}
        ),
        "telemetry": {"port": telemetry_port},
        **({"memoryEstimate": {name: estimate[name] for name in _ESTIMATE}} if estimate else {}),
        "limits": {
            "datasetBytes": limits.dataset_bytes,
            "downloadSeconds": limits.download_seconds,
            "allowPrivateAddresses": limits.allow_private_addresses,
            **(
                {}
                if limits.retry_seconds == DEFAULT_RETRY_SECONDS
                else {"retrySeconds": limits.retry_seconds}
            ),
        },
        **({"tracking": tracking_document(trackers, job)} if trackers else {}),
    }


def training_member(
    training: Training, plan: Plan, device: Device, *, explains_rate: bool = False
) -> dict[str, Any]:
    """Build the member `training` of the run spec, as in `build_run_spec`."""
    length = {"epochs": plan.epochs} if plan.maximum_steps is None else {"maximumSteps": plan.maximum_steps}
    return {
        **length,
        "learningRate": plan.learning_rate.value,
        "effectiveBatchSize": training.effective_batch_size,
        "microBatchSize": plan.micro_batch_size,
        "maximumLength": training.maximum_length,
        "lora": training.lora.model_dump(by_alias=True),
        "quantization": training.quantization,
        "seed": training.seed,
        "schedule": training.schedule.model_dump(by_alias=True),
        "gradientCheckpointing": plan.gradient_checkpointing,
        "checkpoint": {"intervalSteps": training.checkpoint.interval_steps},
        **_newer_training(training),
        **({} if plan.layout.parallelism == "DataParallel" else {"parallelism": plan.layout.parallelism}),
        **(_rate_reason(plan) if explains_rate else {}),
        **_states(plan, device),
        **({"ladder": _ladder(plan, device)} if plan.ladder else {}),
    }


def _ranks(layout: Layout) -> dict[str, Any]:
    """A trainer before contract 1.12 rejects the member, so that it never trains on fewer GPUs than the job pays for."""
    return {} if layout.gpus == 1 else {"ranks": {"nodes": layout.nodes, "perNode": layout.per_node}}


def _destinations(spec: FineTuneJobSpec, paths: MountPaths) -> dict[str, Any]:
    """A trainer before contract 1.8 rejects the member, so that it never publishes to less than the job asks for."""
    if spec.output.destinations is None:
        return {}
    return {"destinations": [destination_place(entry, paths) for entry in spec.output.destinations]}


def destination_place(entry: NamedDestination, paths: MountPaths) -> dict[str, Any]:
    """One of `output.destinations` as the run spec names it."""
    store = entry.object_store
    if store is not None:
        place = _object_store(store, destination_prefix(entry.name))
    elif entry.oci is not None:
        prefix = destination_prefix(entry.name)
        signed_in = {} if entry.secret is None else {"credentialsPrefix": prefix}
        image = {} if entry.oci.image_tag is None else {"imageTag": entry.oci.image_tag}
        place = {"kind": "Oci", "reference": entry.oci.reference, **image, **signed_in}
    elif entry.hugging_face is not None:
        place = _hub_destination(entry.hugging_face, token_variable(destination_prefix(entry.name)))
    else:
        path, uri = paths.destinations[entry.name]
        place = {"kind": "Directory", "path": path, "uri": uri}
    return {"name": entry.name, **place, **({"overwrite": True} if entry.overwrite else {})}


def _hub_destination(given: HubRepository, variable: str) -> dict[str, Any]:
    return {
        "kind": "HuggingFace",
        "repository": given.repository,
        "revision": given.branch,
        "tokenVariable": variable,
        **({"private": False} if given.private is False else {}),
    }


def _newer_training(training: Training) -> dict[str, Any]:
    """Return the training settings since contract 1.5 that differ from their defaults."""
    plain = Training()
    newer: dict[str, Any] = {}
    if training.checkpoint.keep != plain.checkpoint.keep:
        newer["checkpoint"] = training.checkpoint.model_dump(by_alias=True)
    if training.early_stopping is not None:
        newer["earlyStopping"] = training.early_stopping.model_dump(by_alias=True)
    members = ("weight_decay", "maximum_gradient_norm", "neftune_noise_alpha", "packing", "kernels")
    for member in (*members, "router_aux_loss_coefficient"):
        value = getattr(training, member)
        if value != getattr(plain, member):
            newer[to_camel(member)] = value
    return newer


def _rate_reason(plan: Plan) -> dict[str, str]:
    return {"learningRateReason": (plan.learning_rate.reason or GIVEN_RATE)[:_LONGEST_REASON]}


def _ladder(plan: Plan, device: Device) -> list[dict[str, Any]]:
    return [
        {
            "microBatchSize": rung.micro_batch_size,
            "gradientCheckpointing": rung.gradient_checkpointing,
            **_states(rung, device),
        }
        for rung in plan.ladder
    ]


def _states(chosen: Plan | Rung, device: Device) -> dict[str, str]:
    """Return optimizer and weights of a rung where they are not the defaults. On a CPU there is no choice."""
    if device == "cpu":
        return {}
    return {
        **({} if chosen.optimizer == DEFAULT_OPTIMIZER else {"optimizer": chosen.optimizer}),
        **({} if chosen.weights == DEFAULT_WEIGHTS else {"weights": chosen.weights}),
    }


def _model(spec: FineTuneJobSpec, paths: MountPaths) -> dict[str, Any]:
    given = spec.model.source
    source: dict[str, Any]
    if given.hugging_face is not None:
        source = _hub(given.hugging_face, MODEL_PREFIX)
    elif given.object_store is not None:
        source = _object_store(given.object_store, MODEL_PREFIX)
    else:
        source = {"kind": "Directory", "path": _required(paths.model, "model")}
    model: dict[str, Any] = {
        "source": source,
        "chatTemplateArguments": dict(spec.model.chat_template_arguments),
    }
    if spec.model.chat_template is not None:
        model["chatTemplatePath"] = _required(paths.chat_template, "chat_template")
    return model


def _evaluation(given: Evaluation) -> dict[str, Any]:
    """A trainer of an earlier minor version rejects the other members, so they are sent only if they say something."""
    members: dict[str, Any] = {"maximumRows": given.maximum_rows}
    if given.minimum_rows != DEFAULT_MINIMUM_ROWS:
        members["minimumRows"] = given.minimum_rows
    if given.gate != "Report":
        members["gate"] = given.gate
    if given.generated_rows != DEFAULT_GENERATED_ROWS:
        members["generatedRows"] = given.generated_rows
    if given.metrics is not None:
        members["metrics"] = list(given.metrics)
    if given.sample_prompts is not None:
        members["samplePrompts"] = list(given.sample_prompts)
    return members


def _dataset(spec: FineTuneJobSpec, paths: MountPaths) -> dict[str, Any]:
    given = spec.dataset
    validation: dict[str, Any]
    if given.validation.source is None:
        validation = {"fraction": given.validation.fraction}
    else:
        validation = {"source": _dataset_source(given.validation.source, paths.validation, VALIDATION_PREFIX)}
    dataset: dict[str, Any] = {
        "source": _dataset_source(given.source, paths.dataset, DATASET_PREFIX),
        "validation": validation,
        "reasoning": given.reasoning,
        "rejectedRows": {"maximumFraction": given.rejected_rows.maximum_fraction},
    }
    if given.control_tokens != "Reject":
        dataset["controlTokens"] = given.control_tokens
    if given.format != "Auto":
        dataset["format"] = given.format
    if given.target_prompts is not None:
        dataset["targetPromptsPath"] = _required(paths.target_prompts, "target_prompts")
    if given.thresholds != Thresholds():
        dataset["thresholds"] = given.thresholds.model_dump(by_alias=True)
    return dataset


def _dataset_source(source: DatasetSource, path: str | None, prefix: str) -> dict[str, Any]:
    if source.url is not None:
        return {"kind": "Url", "urlVariable": url_variable(prefix)}
    if source.hugging_face is not None:
        hub = source.hugging_face
        members = {"configuration": hub.configuration, "split": hub.split, "path": hub.path}
        return {
            **_hub(hub, prefix),
            **{name: value for name, value in members.items() if value is not None},
        }
    if source.object_store is not None:
        return _object_store(source.object_store, prefix)
    return {"kind": "File", "path": _required(path, "dataset")}


def _hub(hub: HuggingFaceModel | HuggingFaceDataset, prefix: str) -> dict[str, Any]:
    source = {"kind": "HuggingFace", "repository": hub.repository, "revision": hub.revision}
    if hub.token_secret_ref is not None:
        source["tokenVariable"] = token_variable(prefix)
    return source


def _object_store(store: S3Object | CloudObject, prefix: str) -> dict[str, Any]:
    source = {"kind": "ObjectStore", "uri": store.uri}
    if isinstance(store, S3Object):
        members = {"endpoint": store.endpoint, "region": store.region}
        source |= {name: value for name, value in members.items() if value is not None}
    if store.secret_ref is not None:
        source["credentialsPrefix"] = prefix
    return source


def _required(path: str | None, name: str) -> str:
    if path is None:
        raise ValueError(f"paths.{name} must be a path for this source, found None")
    return path
