"""The run spec as typed values: contract/run.schema.json seen from the trainer's side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from finetune_trainer.contract.destinations import NamedDestination
from finetune_trainer.contract.object_store import ObjectStoreSource
from finetune_trainer.contract.rank_layout import RankLayout
from finetune_trainer.contract.report_task import MemoryEstimate, ReportTask
from finetune_trainer.contract.tracking import Tracking
from finetune_trainer.contract.train_result import Metric
from finetune_trainer.contract.value import Value
from finetune_trainer.errors import Reason, StageError

CONTRACT_VERSION = "1.13"
DEFAULT_GENERATED_ROWS = 32
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class Job(Value):
    """The FineTuneJob that this run belongs to."""

    namespace: str
    name: str
    uid: str


class DirectorySource(Value):
    """A model folder that is mounted into this container."""

    kind: Literal["Directory"]
    path: Path


class HuggingFaceSource(Value):
    """A model repository; `token_variable` names the environment variable that holds the token."""

    kind: Literal["HuggingFace"]
    repository: str
    revision: str
    token_variable: str | None = None


class Model(Value):
    """The base model, and the arguments of its chat template."""

    source: Annotated[DirectorySource | HuggingFaceSource | ObjectStoreSource, Field(discriminator="kind")]
    chat_template_path: Path | None = None
    chat_template_arguments: dict[str, str | int | float | bool]


class FileSource(Value):
    """A dataset file that is mounted into this container."""

    kind: Literal["File"]
    path: Path


class UrlSource(Value):
    """A dataset at a URL; `url_variable` names the environment variable that holds the URL."""

    kind: Literal["Url"]
    url_variable: str


class HubDatasetSource(Value):
    """A dataset repository on a Hugging Face hub: the files of one split, or the one file at `path`."""

    kind: Literal["HuggingFace"]
    repository: str
    revision: str
    configuration: str | None = None
    split: str = "train"
    path: str | None = None
    token_variable: str | None = None


DatasetSource = Annotated[
    FileSource | UrlSource | HubDatasetSource | ObjectStoreSource, Field(discriminator="kind")
]


class ValidationFraction(Value):
    """Hold out this share of the distinct conversations, chosen by seed and content."""

    fraction: Annotated[float, Field(ge=0.001, le=0.5)]


class ValidationSource(Value):
    """Validate on a separate dataset."""

    source: DatasetSource


class RejectedRows(Value):
    """Reject the dataset if more than this fraction of its rows is rejected."""

    maximum_fraction: Annotated[float, Field(ge=0, le=1)]


class Thresholds(Value):
    """Limits beyond which the dataset report warns. Fractions are of the kept rows unless stated otherwise."""

    refused_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    duplicate_fraction: Annotated[float, Field(ge=0, le=1)] = 0.05
    near_duplicate_fraction: Annotated[float, Field(ge=0, le=1)] = 0.2
    near_duplicate_similarity: Annotated[float, Field(gt=0, le=1)] = 0.8
    leaked_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    empty_answer_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    repeated_answer_fraction: Annotated[float, Field(ge=0, le=1)] = 0.1
    mixed_reasoning_fraction: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    reasoning_as_text_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    shortened_fraction: Annotated[float, Field(ge=0, le=1)] = 0.05
    minimum_rows: Annotated[int, Field(ge=0)] = 50
    minimum_prompt_variety: Annotated[float, Field(ge=0, le=1)] = 0.3
    minimum_language_fraction: Annotated[float, Field(ge=0, le=1)] = 0.9
    maximum_capacity_ratio: Annotated[float, Field(gt=0)] = 1.0
    minimum_coverage: Annotated[float, Field(ge=0, le=1)] = 0.8
    target_similarity: Annotated[float, Field(gt=0, le=1)] = 0.5


class Dataset(Value):
    """The source of the rows, and the settings for reading and splitting them."""

    source: DatasetSource
    format: Literal["Auto", "Messages", "PromptCompletion", "Alpaca", "ShareGPT"] = "Auto"
    validation: ValidationFraction | ValidationSource
    reasoning: Literal["Keep", "Strip"]
    control_tokens: Literal["Reject", "Escape"] = "Reject"
    rejected_rows: RejectedRows
    target_prompts_path: Path | None = None
    thresholds: Thresholds = Thresholds()


class Lora(Value):
    """Low-rank adapter settings, in peft's meaning."""

    rank: Annotated[int, Field(ge=1)]
    alpha: Annotated[int, Field(ge=1)]
    dropout: Annotated[float, Field(ge=0, le=0.9)]
    target_modules: Literal["AllLinear", "AttentionOnly"]
    variant: Literal["Standard", "RankStabilized", "DoRA"]


class Schedule(Value):
    """Learning-rate schedule; `warmup_ratio` is a share of all optimizer steps."""

    type: Literal["Cosine", "Linear", "Constant"]
    warmup_ratio: Annotated[float, Field(ge=0, le=0.5)]


class Checkpoint(Value):
    """The optimizer steps between two saved states of TRAIN, and the state whose adapter is published.

    `Best` is the state with the smallest loss on the selection rows.
    """

    interval_steps: Annotated[int, Field(ge=1)]
    keep: Literal["Last", "Best"] = "Last"


class EarlyStopping(Value):
    """Ends training if the loss on the selection rows improves no more.

    It is measured every `interval_steps` optimizer steps, on at most `maximum_rows` rows. Training ends after `patience`
    measurements in a row that are not below the best by more than `minimum_improvement` nats per token.
    """

    patience: Annotated[int, Field(ge=1)]
    interval_steps: Annotated[int, Field(ge=1)]
    minimum_improvement: Annotated[float, Field(ge=0)]
    maximum_rows: Annotated[int, Field(ge=1)]


class Rung(Value):
    """One way to hold a step in the GPU's memory. It does not change which rows a step learns, and with which weight.

    `optimizer` is None if the run spec names none: on a GPU that is the default, and on a CPU there is one only.
    """

    micro_batch_size: Annotated[int, Field(ge=1)]
    gradient_checkpointing: bool
    optimizer: Optimizer | None = None
    weights: Weights = "Quantized"


Optimizer = Literal["AdamW", "AdamW8Bit", "PagedAdamW8Bit"]
DEFAULT_OPTIMIZER: Optimizer = "PagedAdamW8Bit"
"""On a GPU. Operators before 1.7 name none, and their checkpoints hold its states."""


Weights = Literal["Quantized", "Dequantized"]


class Training(Value):
    """Optimization settings. Exactly one of `epochs` and `maximum_steps` is set.

    `ladder` has the rungs to take one after another when the GPU is out of memory, after that of the run itself.
    """

    epochs: Annotated[float, Field(gt=0)] | None = None
    maximum_steps: Annotated[int, Field(ge=1)] | None = None
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    learning_rate_reason: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """Why the rate has its value: a rule, or the job's own member; None from an operator before 1.6."""
    effective_batch_size: Annotated[int, Field(ge=1)]
    micro_batch_size: Annotated[int, Field(ge=1)]
    maximum_length: Annotated[int, Field(ge=16)]
    lora: Lora
    quantization: Literal["NF4"]
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)]
    schedule: Schedule
    gradient_checkpointing: bool
    optimizer: Optimizer | None = None
    weights: Weights = "Quantized"
    """The form of the 4-bit weights on the device: packed, or unpacked once, with the same values."""
    checkpoint: Checkpoint
    ladder: Annotated[tuple[Rung, ...], Field(max_length=16)] = ()
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    maximum_gradient_norm: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """Larger gradients are scaled down to this norm; 0 for no limit."""
    neftune_noise_alpha: Annotated[float, Field(ge=0, le=100)] = 0.0
    router_aux_loss_coefficient: Annotated[float, Field(gt=0, le=1)] | None = None
    """The weight of the loss that balances the load of experts; None leaves it out. Since 1.11."""
    parallelism: Literal["DataParallel", "FullyShard"] = "DataParallel"
    """How several ranks share the model: a replica each, or a part of the frozen weights each. Since 1.12."""
    packing: Literal["Auto", "Never"] = "Auto"
    """`Auto` packs rows into passes without padding if the model allows that; `Never` groups them by length."""
    kernels: Literal["Auto", "Reference"] = "Auto"
    """`Auto` computes small operations in fused kernels where these agree with the reference; `Reference` never does."""
    early_stopping: EarlyStopping | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Training:
        if (self.epochs is None) == (self.maximum_steps is None):
            raise ValueError("must have exactly one of `epochs` and `maximumSteps`")
        for size in (self.micro_batch_size, *(rung.micro_batch_size for rung in self.ladder)):
            if self.effective_batch_size % size:
                raise ValueError(
                    f"microBatchSize must divide effectiveBatchSize, found {size} and {self.effective_batch_size}"
                )
        return self

    @property
    def gradient_accumulation_steps(self) -> int:
        """Forward passes per optimizer step."""
        return self.effective_batch_size // self.micro_batch_size


Gate = Literal["Report", "WithholdIfWorse", "WithholdUnlessImproved"]


class Evaluation(Value):
    """The number of validation rows that are measured before and after training, and what their verdict decides.

    With fewer than `minimum_rows` rows the verdict is Inconclusive. `gate` publishes always, or withholds the artifacts if
    the verdict is Worse, or unless it is Improved. Base and tuned model answer at most `generated_rows` rows and the
    `sample_prompts`. `metrics` judge the answers; None means those that the reference answers allow.
    """

    maximum_rows: Annotated[int, Field(ge=2)]
    minimum_rows: Annotated[int, Field(ge=2)] = 20
    gate: Gate = "Report"
    generated_rows: Annotated[int, Field(ge=0, le=1000)] = DEFAULT_GENERATED_ROWS
    metrics: Annotated[tuple[Metric, ...], Field(max_length=3)] | None = None
    sample_prompts: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=2048)], ...], Field(max_length=8)
    ] = ()


class Destination(Value):
    """Folder that receives the artifacts; `uri` is its name for people."""

    kind: Literal["Directory"]
    path: Path
    uri: str


ArtifactKind = Literal["Adapter", "Merged", "BaseAsTrained"]


class Signing(Value):
    """The private key that signs the statement over the published files: a PEM file that is mounted in MERGE alone."""

    key_path: Path


class Output(Value):
    """The artifacts to publish, their destination, and the merged weights: their type and what they are made of.

    `dtype` is bf16 whatever the base has, or the type that each tensor of the base has. `merge_onto` names the weights
    that the update is added to: those of the training, dequantized, or the base's own. `destinations` receive copies of
    what MERGE has published to `destination`, in this order.
    """

    artifacts: tuple[ArtifactKind, ...]
    destination: Destination
    destinations: Annotated[tuple[NamedDestination, ...], Field(max_length=8)] = ()
    dtype: Literal["BFloat16", "AsBase"] = "BFloat16"
    merge_onto: Literal["TrainedWeights", "OriginalWeights"] = "TrainedWeights"
    signing: Signing | None = None


class Workspace(Value):
    """The job's own volume, shared by its stages."""

    path: Path


class ModelCache(Value):
    """A folder of quantized base models that jobs share."""

    path: Path


class Telemetry(Value):
    """First port to try for /progress and /metrics."""

    port: Annotated[int, Field(ge=1024, le=65000)]
    host: str = "0.0.0.0"  # noqa: S104 -- pods are scraped on their IP

    @property
    def is_local(self) -> bool:
        """Whether only this machine can read the progress, so that no operator does."""
        return self.host in _LOOPBACK


class Limits(Value):
    """Bounds set by the administrator, and the seconds to wait for a server in an outage."""

    dataset_bytes: Annotated[int, Field(ge=1)]
    download_seconds: Annotated[int, Field(ge=1)]
    allow_private_addresses: bool
    retry_seconds: Annotated[int, Field(ge=0, le=86_400)] = 600


class RunSpec(Value):
    """The whole task of one trainer process; the subcommand names the stage."""

    version: str
    job: Job
    spec_hash: str
    attempt: Annotated[int, Field(ge=0)]
    device: Literal["cuda", "cpu"]
    model: Model
    dataset: Dataset
    training: Training
    evaluation: Evaluation
    output: Output
    workspace: Workspace
    model_cache: ModelCache | None = None
    telemetry: Telemetry
    limits: Limits
    ranks: RankLayout | None = None
    """None for one process. Since 1.12."""
    tracking: Tracking | None = None
    report: ReportTask | None = None
    memory_estimate: MemoryEstimate | None = None


def minor_version(version: str) -> int:
    """Return the minor version of a document's `version`; 0 if it has none."""
    minor = version.split(".")[1:2]
    return int(minor[0]) if minor and minor[0].isdecimal() else 0


def read_run_spec(path: Path) -> RunSpec:
    """Read and check a run spec.

    Raises StageError(InvalidRunSpec) if the file is missing, is not JSON, has another major version, or
    breaks the schema. The message names the first wrong member.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StageError(
            Reason.INVALID_RUN_SPEC, f"the run spec must be a readable JSON file, found {path}: {error}"
        ) from error
    major = CONTRACT_VERSION.split(".", maxsplit=1)[0]
    found = document.get("version") if isinstance(document, dict) else None
    if not isinstance(found, str) or found.split(".")[0] != major:
        raise StageError(
            Reason.INVALID_RUN_SPEC,
            f"the run spec's `version` must be {major}.x, found {found!r}; "
            "use operator and trainer image of the same release",
        )
    try:
        return RunSpec.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "(top)"
        raise StageError(Reason.INVALID_RUN_SPEC, f"run spec member `{where}`: {first['msg']}") from error
