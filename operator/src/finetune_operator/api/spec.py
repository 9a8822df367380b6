"""A FineTuneJob's spec as typed values.

Defaults and bounds are the same as in crds/finetunejobs.yaml. The API server applies them to objects in a cluster. The
command line parses files that no API server has checked.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from finetune_operator.api.destinations import Destination, Destinations, OutputClaim
from finetune_operator.api.names import LabelKey, LabelValue, ObjectName, QueueName, ResourceName
from finetune_operator.api.network import JobNetwork
from finetune_operator.api.pods import PodTemplate, Toleration
from finetune_operator.api.quantities import ByteQuantity, CpuQuantity
from finetune_operator.api.sources import (
    DatasetSource,
    KeyRef,
    ModelSource,
    SpecValue,
)
from finetune_operator.api.stages import Stage
from finetune_operator.api.tracking import Tracking
from finetune_operator.errors import InvalidSpecError


class ChatTemplate(SpecValue):
    """A Jinja chat template for a model that has none."""

    config_map_key_ref: KeyRef


class Model(SpecValue):
    """The base model, its chat template and the arguments of the template."""

    source: ModelSource
    chat_template: ChatTemplate | None = None
    chat_template_arguments: Annotated[dict[str, bool | int | float | str], Field(max_length=16)] = {}  # noqa: RUF012 -- pydantic copies defaults


class Validation(SpecValue):
    """The validation rows: a share of the dataset, or a separate source."""

    fraction: Annotated[float, Field(ge=0.001, le=0.5)] | None = None
    source: DatasetSource | None = None

    @model_validator(mode="before")
    @classmethod
    def _default_fraction(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and value.get("fraction") is None and value.get("source") is None:
            return {**value, "fraction": 0.1}
        return value


class RejectedRows(SpecValue):
    """The maximum share of rejected rows in a usable dataset."""

    maximum_fraction: Annotated[float, Field(ge=0, le=1)] = 0.01


class TargetPrompts(SpecValue):
    """Prompts from production, for the coverage in the dataset report."""

    config_map_key_ref: KeyRef


DEFAULT_MINIMUM_ROWS = 20
"""Validation rows that a verdict needs by default; docs/evaluation.md has the error rates."""
DEFAULT_GENERATED_ROWS = 32
"""Validation rows that both models answer by default. They bound the time, and a verdict on them needs 20."""
_USER = re.compile(r"//[^/@\s\"]*@")
"""User and password of a URL, which no message may repeat."""

Fraction = Annotated[float, Field(ge=0, le=1)]


class Thresholds(SpecValue):
    """Thresholds for the warnings of the dataset report. The trainer's contract has the same defaults."""

    refused_fraction: Fraction = 0.0
    duplicate_fraction: Fraction = 0.05
    near_duplicate_fraction: Fraction = 0.2
    near_duplicate_similarity: Annotated[float, Field(gt=0, le=1)] = 0.8
    leaked_fraction: Fraction = 0.0
    empty_answer_fraction: Fraction = 0.0
    repeated_answer_fraction: Fraction = 0.1
    mixed_reasoning_fraction: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    reasoning_as_text_fraction: Fraction = 0.0
    shortened_fraction: Fraction = 0.05
    minimum_rows: Annotated[int, Field(ge=0, le=1_000_000_000)] = 50
    minimum_prompt_variety: Fraction = 0.3
    minimum_language_fraction: Fraction = 0.9
    maximum_capacity_ratio: Annotated[float, Field(gt=0, le=1_000_000)] = 1.0
    minimum_coverage: Fraction = 0.8
    target_similarity: Annotated[float, Field(gt=0, le=1)] = 0.5


class Dataset(SpecValue):
    """The training rows and their processing."""

    source: DatasetSource
    format: Literal["Auto", "Messages", "PromptCompletion", "Alpaca", "ShareGPT", "Text"] = "Auto"
    validation: Validation = Validation(fraction=0.1)
    reasoning: Literal["Keep", "Strip"] = "Keep"
    control_tokens: Literal["Reject", "Escape"] = "Reject"
    rejected_rows: RejectedRows = RejectedRows()
    target_prompts: TargetPrompts | None = None
    thresholds: Thresholds = Thresholds()


class Lora(SpecValue):
    """Low-rank adapter settings."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    alpha: Annotated[int, Field(ge=1, le=8192)] = 32
    dropout: Annotated[float, Field(ge=0, le=0.9)] = 0.0
    target_modules: Literal["AllLinear", "AttentionOnly"] = "AllLinear"
    variant: Literal["Standard", "RankStabilized", "DoRA"] = "Standard"


class Schedule(SpecValue):
    """Learning-rate schedule; `warmup_ratio` is a share of all optimizer steps."""

    type: Literal["Cosine", "Linear", "Constant"] = "Cosine"
    warmup_ratio: Annotated[float, Field(ge=0, le=0.5)] = 0.03


class Checkpoint(SpecValue):
    """The optimizer steps between two checkpoints of TRAIN, and the one whose adapter is published."""

    interval_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 200
    keep: Literal["Last", "Best"] = "Last"


class EarlyStopping(SpecValue):
    """Ends training if the loss on held-out rows improves no more. Patience counts measurements."""

    patience: Annotated[int, Field(ge=1, le=1000)] = 3
    interval_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 50
    minimum_improvement: Annotated[float, Field(ge=0, le=100)] = 0.0
    maximum_rows: Annotated[int, Field(ge=1, le=10_000)] = 100


OLD_LEARNING_RATE = 0.0002
"""The default of the CRD before the operator chose the rate. Objects of that time have it in their spec."""


def _as_omitted(choice: str | None) -> str | None:
    return None if choice == "Auto" else choice


class Training(SpecValue):
    """Training settings. At most one of `epochs` and `maximum_steps` is set."""

    epochs: Annotated[float, Field(gt=0, le=1000)] | None = None
    maximum_steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    effective_batch_size: Annotated[int, Field(ge=1, le=65536)] = 16
    micro_batch_size: Annotated[int, Field(ge=1, le=65536)] | None = None
    maximum_length: Annotated[int, Field(ge=16, le=1_048_576)] = 2048
    lora: Lora = Lora()
    quantization: Literal["NF4"] = "NF4"
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 42
    schedule: Schedule = Schedule()
    gradient_checkpointing: Literal["Auto", "Require", "Forbid"] = "Auto"
    checkpoint: Checkpoint = Checkpoint()
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    maximum_gradient_norm: Annotated[float, Field(ge=0, le=1000)] = 1.0
    neftune_noise_alpha: Annotated[float, Field(ge=0, le=100)] = 0.0
    router_aux_loss_coefficient: Annotated[float, Field(gt=0, le=1)] | None = None
    packing: Annotated[Literal["Auto", "Never"] | None, AfterValidator(_as_omitted)] = None
    """None stands for `Auto`. The CRD has no default: it would show in every stored job, also to older operators."""
    kernels: Annotated[Literal["Auto", "Reference"] | None, AfterValidator(_as_omitted)] = None
    """None stands for `Auto`, as with `packing`."""
    parallelism: Annotated[
        Literal["Auto", "DataParallel", "FullyShard"] | None, AfterValidator(_as_omitted)
    ] = None
    """How several GPUs share the model. None stands for `Auto`, as with `packing`."""
    early_stopping: EarlyStopping | None = None


Metric = Literal["ExactMatch", "JsonValid", "JsonFields"]


class Evaluation(SpecValue):
    """The validation rows to evaluate before and after training: at most, at least for a verdict, and what it decides.

    Base and tuned model answer up to `generated_rows` rows and the `sample_prompts`; `metrics` judge the answers. None
    means those that the reference answers allow.
    """

    maximum_rows: Annotated[int, Field(ge=2, le=100_000)] = 200
    minimum_rows: Annotated[int, Field(ge=2, le=100_000)] = DEFAULT_MINIMUM_ROWS
    gate: Literal["Report", "WithholdIfWorse", "WithholdUnlessImproved"] = "Report"
    generated_rows: Annotated[int, Field(ge=0, le=1000)] = DEFAULT_GENERATED_ROWS
    metrics: Annotated[tuple[Metric, ...], Field(min_length=1, max_length=3)] | None = None
    sample_prompts: (
        Annotated[
            tuple[Annotated[str, Field(min_length=1, max_length=2048)], ...],
            Field(min_length=1, max_length=8),
        ]
        | None
    ) = None


class Signing(SpecValue):
    """The private key that signs the statement over the published files."""

    key_secret_ref: KeyRef


class Output(SpecValue):
    """The published artifacts, their destinations, the type of the merged weights, and what they are made of.

    Exactly one of `destination` and `destinations` is set.
    """

    artifacts: Annotated[
        tuple[Literal["Adapter", "Merged", "BaseAsTrained"], ...], Field(min_length=1, max_length=3)
    ] = ("Adapter", "Merged")
    destination: Destination | None = None
    destinations: Destinations | None = None
    dtype: Literal["BFloat16", "AsBase"] = "BFloat16"
    merge_onto: Literal["TrainedWeights", "OriginalWeights"] = "TrainedWeights"
    signing: Signing | None = None
    reports: Annotated[
        Literal["Workspace", "Destinations"] | None,
        AfterValidator(lambda choice: None if choice == "Workspace" else choice),
    ] = None
    """Where the report goes when the job has ended. None stands for `Workspace`. The CRD has no default."""

    @property
    def claims(self) -> dict[str, OutputClaim]:
        """The claims among the destinations by name; "" is the name of the only one of `destination`."""
        if self.destination is not None:
            return {"": self.destination.persistent_volume_claim}
        named = self.destinations or ()
        return {
            each.name: each.persistent_volume_claim
            for each in named
            if each.persistent_volume_claim is not None
        }


MOST_GPUS = 64


class StageResources(SpecValue):
    """CPU request and memory request (= limit) of one stage. The operator chooses a missing value."""

    cpu: CpuQuantity | None = None
    memory: ByteQuantity | None = None


class Resources(SpecValue):
    """Resource requests of the stages' pods. Node selector, tolerations and runtime class apply to TRAIN only."""

    gpus: Annotated[int, Field(ge=1, le=MOST_GPUS)] = 1
    gpus_per_node: Annotated[int, Field(ge=1, le=MOST_GPUS)] | None = None
    """GPUs of each pod of TRAIN. None lets the operator choose from what nodes offer."""
    maximum_gpus: Annotated[int, Field(ge=1, le=MOST_GPUS)] | None = None
    """The operator chooses the number of GPUs, up to this one. None leaves it to `gpus`. The CRD has no default."""
    right_size: Literal["Allow", "Forbid"] = "Allow"
    gpu_resource_name: ResourceName = "nvidia.com/gpu"
    prepare: StageResources = StageResources()
    train: StageResources = StageResources()
    merge: StageResources = StageResources()
    node_selector: dict[LabelKey, LabelValue] = {}  # noqa: RUF012 -- pydantic copies defaults
    tolerations: tuple[Toleration, ...] = ()
    runtime_class_name: ObjectName | None = None
    priority_class_name: ObjectName | None = None


class Workspace(SpecValue):
    """The volume that the stages share. If the size is not set, the operator chooses it."""

    size: ByteQuantity | None = None
    storage_class_name: ObjectName | None = None
    existing_claim: ObjectName | None = None


class ModelCache(SpecValue):
    """A claim in which jobs share quantized base models."""

    claim_name: ObjectName


class KeepChildrenSeconds(SpecValue):
    """The seconds for which a finished stage keeps its Job and pod, for debugging."""

    success: Annotated[int, Field(ge=0)] = 0
    failure: Annotated[int, Field(ge=0)] = 0


class Lifecycle(SpecValue):
    """Deadline, retries, and the objects to keep after the end."""

    deadline_seconds: Annotated[int, Field(ge=1)] | None = None
    no_progress_seconds: Annotated[int, Field(ge=30)] | None = None
    retries: Annotated[int, Field(ge=0)] = 2
    keep_children_seconds: KeepChildrenSeconds = KeepChildrenSeconds()
    keep_workspace: Literal["Always", "OnFailure", "Never"] = "OnFailure"


class FineTuneJobSpec(SpecValue):
    """The whole spec of a FineTuneJob."""

    model: Model
    dataset: Dataset
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    output: Output
    resources: Resources = Resources()
    pod_template: PodTemplate = PodTemplate()
    workspace: Workspace = Workspace()
    model_cache: ModelCache | None = None
    network: JobNetwork = JobNetwork()
    tracking: Tracking | None = None
    """None stands for the administrator's trackers."""
    queue_name: QueueName | None = None
    """The LocalQueue of Kueue for TRAIN. None runs it without a queue."""
    cpu_queue_name: QueueName | None = None
    """The same for PREPARE and MERGE."""
    lifecycle: Lifecycle = Lifecycle()
    suspend: bool = False

    def queue_of(self, stage: Stage) -> str | None:
        """The LocalQueue of this stage's Job; None if it has none."""
        return self.queue_name if stage is Stage.TRAIN else self.cpu_queue_name

    @classmethod
    def parse(cls, spec: Mapping[str, Any]) -> Self:
        """Parse the `spec` of a FineTuneJob.

        Raises InvalidSpecError. It names each wrong field, what it must be and what was found.
        """
        try:
            return cls.model_validate(spec)
        except ValidationError as error:
            raise InvalidSpecError(_describe(error)) from error


_NO_PART_OF_THE_MODEL = {"suspend", "lifecycle", "network", "tracking", "queue_name", "cpu_queue_name"}


def spec_hash(spec: FineTuneJobSpec) -> str:
    """SHA-256 (`sha256:` + 64 hex digits) of the fields that determine the model.

    The digest covers the canonical JSON of the spec without `suspend`, `lifecycle`, `network`, `tracking`, the
    queues, `evaluation.gate`, `output.reports`, `overwrite` of destinations and fields with their default value. So a file and
    the object that an API server made of it have the same hash. A new field with a default in a later version does not
    change the hash of an old job. The learning rate was 0.0002 by default before it was chosen, so that value counts as
    omitted, and an omitted one as null. The gate and `overwrite` decide about publication and not about the model, so a
    withheld model can be published without training it again.
    """
    ungated = spec.evaluation.model_copy(update={"gate": Evaluation().gate})
    content = spec.model_copy(update={"evaluation": ungated}).model_dump(
        mode="json", by_alias=True, exclude_defaults=True, exclude=_NO_PART_OF_THE_MODEL
    )
    training = {"learningRate": None, **content.pop("training", {})}
    if training["learningRate"] == OLD_LEARNING_RATE:
        del training["learningRate"]
    if training:
        content["training"] = training
    content.get("output", {}).pop("reports", None)
    for destination in content.get("output", {}).get("destinations", ()):
        destination.pop("overwrite", None)
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


def _describe(error: ValidationError) -> str:
    """Describe up to five wrong fields, in a length that fits a condition's message."""
    parts = []
    for detail in error.errors(include_url=False, include_context=False)[:5]:
        path = ".".join(str(step) for step in detail["loc"])
        found = _USER.sub("//...@", json.dumps(detail["input"], default=str))[:80]
        parts.append(f"spec.{path}: {detail['msg']}, found {found}")
    return "; ".join(parts)
