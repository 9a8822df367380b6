"""Strict, bounded reading of a trainer's documents: termination messages and progress.

The trainer runs users' data and models, so its documents are hostile input. Everything that passes here fits the CRD's
status schema. Everything else raises MalformedDocumentError.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)
from pydantic.alias_generators import to_camel

from finetune_operator.api.stages import Stage
from finetune_operator.errors import MalformedDocumentError

MAXIMUM_RESULT_BYTES = 4096
"""The kubelet's limit on one container's termination message."""
MAXIMUM_PROGRESS_BYTES = 16 * 1024
UNNAMED_WARNING = "Unnamed"
"""Code of a warning from a trainer of contract 1.0, which sent no code."""

_INT64_MAX = 2**63 - 1


def clean_text(text: str) -> str:
    """Replace lone surrogates and control characters of `text`, which are unsafe for terminals and JSON readers."""
    encodable = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(
        character if character.isprintable() or character == "\n" else " " for character in encodable
    )


def _clean(value: object) -> object:
    """Clean a text before validation, which rejects lone surrogates."""
    return clean_text(value) if isinstance(value, str) else value


def _to_utc(moment: datetime) -> datetime:
    """The same moment in UTC. Raises ValueError if UTC cannot express it."""
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("must be a moment between the years 1 and 9999 in UTC") from error


Text16 = Annotated[str, Field(max_length=16), BeforeValidator(_clean)]
Text64 = Annotated[str, Field(max_length=64), BeforeValidator(_clean)]
Text128 = Annotated[str, Field(max_length=128), BeforeValidator(_clean)]
Text256 = Annotated[str, Field(max_length=256), BeforeValidator(_clean)]
Text512 = Annotated[str, Field(max_length=512), BeforeValidator(_clean)]
Text1024 = Annotated[str, Field(max_length=1024), BeforeValidator(_clean)]
Word = Annotated[str, Field(pattern=r"^[A-Z][A-Za-z0-9]{0,63}$")]
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=_INT64_MAX, strict=True)]
Positive = Annotated[int, Field(ge=1, le=_INT64_MAX, strict=True)]
Step = Annotated[int, Field(ge=0, le=10**12, strict=True)]
Attempt = Annotated[int, Field(ge=0, le=1000, strict=True)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PropertyName = Annotated[str, Field(pattern=r"^[a-z][A-Za-z0-9]{0,63}$")]
ConfigName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
Scalar = bool | Annotated[int, Field(ge=-_INT64_MAX - 1, le=_INT64_MAX, strict=True)] | Finite | Text64 | None
Version = Annotated[str, Field(pattern=r"^1\.[0-9]{1,6}$")]
Time = Annotated[AwareDatetime, AfterValidator(_to_utc)]


class _Document(BaseModel):
    """An immutable document in camelCase. Unknown members come from a newer minor version and are ignored."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)


_AnyDocument = TypeVar("_AnyDocument", bound=_Document)


class Example(_Document):
    """The text that the labels of one row decode to."""

    row: Positive
    learned: Text512


class EndToken(_Document):
    """A token that ends an answer, and its text."""

    id: Count
    text: Text64


class RowFormat(_Document):
    """The format of the rows, and the reason for choosing it."""

    name: Text64
    why: Text256


class Language(_Document):
    """A language and its share of the sampled rows."""

    code: Text16
    fraction: Fraction


class Coverage(_Document):
    """The number of target prompts, and the number of those that have a similar training prompt."""

    targets: Count
    covered: Count


class DatasetWarning(_Document):
    """A finding for a person. `message` says what was found and what to do."""

    code: Word
    value: Finite | None = None
    threshold: Finite | None = None
    message: Text256


def _as_warning(value: object) -> object:
    """In contract 1.0 a warning is its message alone."""
    return {"code": UNNAMED_WARNING, "message": value} if isinstance(value, str) else value


def _as_text(value: object) -> object:
    """Show a size or a count of a source's identity as text."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


SourceProperty = Annotated[Text256, BeforeValidator(_as_text)]
SourceIdentity = Annotated[dict[PropertyName, SourceProperty], Field(max_length=16)]
"""Identifies the bytes that were read, by a commit, an ETag or a size. It holds no URL and no secret."""


class DatasetReport(_Document):
    """PREPARE's findings about the rows. `longest_example` and `supervised_tokens` are in tokens."""

    digest: Digest
    rows: Count
    kept: Count
    duplicates: Count = 0
    rejected: Annotated[dict[Word, Positive], Field(max_length=32)]
    training_examples: Count
    validation_examples: Count
    supervised_tokens: Count
    longest_example: Count
    format: RowFormat | None = None
    source: SourceIdentity | None = None
    validation_source: SourceIdentity | None = None
    end_tokens: Annotated[tuple[EndToken, ...], Field(max_length=8)] | None = None
    near_duplicates: Count | None = None
    leaked: Count | None = None
    languages: Annotated[tuple[Language, ...], Field(max_length=3)] | None = None
    reasoning_fraction: Fraction | None = None
    prompt_variety: Fraction | None = None
    capacity_ratio: NotNegative | None = None
    coverage: Coverage | None = None
    shortened: Count | None = None
    warnings: Annotated[
        tuple[Annotated[DatasetWarning, BeforeValidator(_as_warning)], ...], Field(max_length=8)
    ]
    example: Example | None = None


def _nested_once(config: dict[str, Any]) -> dict[str, Any]:
    """Check that a config nests only its text part."""
    nested = [name for name, value in config.items() if isinstance(value, dict)]
    if nested not in ([], ["text_config"]):
        raise ValueError("must nest no object but `text_config`")
    return config


ConfigMembers = Annotated[dict[ConfigName, Scalar], Field(max_length=64)]
ModelConfig = Annotated[
    dict[ConfigName, Scalar | ConfigMembers], Field(max_length=64), AfterValidator(_nested_once)
]
"""Members of the base model's config.json (contract/model_config.json)."""


class ModelReport(_Document):
    """The quantized base model that PREPARE put into the workspace."""

    architecture: Text128
    parameters: Positive
    commit: Text64 | None = None
    digest: Digest
    quantized_modules: Positive
    bytes: Positive
    config: ModelConfig | None = None


class PrepareResult(_Document):
    """The result of PREPARE."""

    dataset: DatasetReport
    model: ModelReport


class EvaluationReport(_Document):
    """Loss before and after training, in nats per supervised token."""

    rows: Positive
    base_loss: Finite
    tuned_loss: Finite
    difference: Finite
    interval: tuple[Finite, Finite]
    verdict: Literal["Improved", "NoChange", "Worse"]


class MemoryReport(_Document):
    """Measured peaks of the GPU's memory, in bytes; `device_bytes` is the value that nvidia-smi shows."""

    allocated_bytes: Count
    reserved_bytes: Count
    device_bytes: Count | None = None
    usable_bytes: Count | None = None
    load_bytes: Count | None = None


class TrainResult(_Document):
    """The result of TRAIN."""

    device: Text64
    steps: Positive
    training_loss: Finite
    tokens_per_second: Finite | None = None
    adapter_digest: Digest
    memory: MemoryReport | None = None
    evaluation: EvaluationReport


class Artifact(_Document):
    """One published folder."""

    kind: Literal["Adapter", "Merged"]
    uri: Text512
    digest: Digest
    bytes: Positive
    files: Annotated[int, Field(ge=1, le=2**31 - 1, strict=True)]


def _distinct_kinds(artifacts: tuple[Artifact, ...]) -> tuple[Artifact, ...]:
    """The status is a list-map by kind, so the API server rejects a status that repeats a kind."""
    if len({artifact.kind for artifact in artifacts}) != len(artifacts):
        raise ValueError("must have at most one artifact of each kind")
    return artifacts


class Verification(_Document):
    """Comparison of the merged model with the trained one. Losses and divergence are in nats per token."""

    rows: Positive
    tokens: Positive
    kl_divergence: Finite
    trained_loss: Finite
    merged_loss: Finite
    prompt: Text512
    answer: Text512


class MergeResult(_Document):
    """The result of MERGE."""

    artifacts: Annotated[
        tuple[Artifact, ...], Field(min_length=1, max_length=2), AfterValidator(_distinct_kinds)
    ]
    verification: Verification | None = None


class CompletedStages(_Document):
    """Later stages that PREPARE found finished for the same spec hash."""

    train: TrainResult | None = None
    merge: MergeResult | None = None


class Result(_Document):
    """The final document of a stage (contract/result.schema.json)."""

    version: Version
    uid: Text64
    stage: Stage
    attempt: Attempt
    outcome: Literal["Succeeded", "Failed", "Interrupted"]
    reason: Word | None = None
    message: Text1024 = ""
    start_time: Time
    completion_time: Time
    peak_memory_bytes: Count | None = None
    log_tail: Annotated[tuple[Text256, ...], Field(max_length=20)] = ()
    prepare: PrepareResult | None = None
    train: TrainResult | None = None
    merge: MergeResult | None = None
    completed: CompletedStages | None = None


class Progress(_Document):
    """The progress of a running stage (contract/progress.schema.json)."""

    version: Version
    uid: Text64
    stage: Stage
    attempt: Attempt
    activity: Word
    """Any word, because a newer minor version may have activities that this version does not know."""
    step: Step
    total_steps: Step | None
    loss: Finite | None = None
    learning_rate: Finite | None = None
    tokens_per_second: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    peak_memory_bytes: Count | None = None
    start_time: Time
    heartbeat_time: Time
    estimated_completion_time: Time | None = None
    config: ModelConfig | None = None
    """The base model's config.json, which PREPARE reports as soon as it is downloaded."""

    @property
    def ratio(self) -> float | None:
        """The completed share of the activity, from 0 to 1. None while the number of steps is unknown."""
        if not self.total_steps:
            return None
        return min(self.step / self.total_steps, 1.0)


def parse_result(message: str, *, uid: str, stage: Stage, attempt: int) -> Result:
    """Read the termination message of one attempt of one stage of the job with this uid.

    Raises MalformedDocumentError if it breaks the contract, belongs to another run, reports success without the stage's
    section, or reports a failure without a reason.
    """
    result = _parse(Result, message.encode("utf-8", "replace"), MAXIMUM_RESULT_BYTES)
    _match_run(result.uid, result.stage, result.attempt, uid, stage, attempt)
    if result.outcome == "Succeeded":
        section = {Stage.PREPARE: result.prepare, Stage.TRAIN: result.train, Stage.MERGE: result.merge}[stage]
        if section is None:
            raise MalformedDocumentError(f"a successful result must have `{stage.slug}`, found none")
    elif result.reason is None:
        raise MalformedDocumentError(f"outcome {result.outcome} must come with a reason, found none")
    return result


def parse_progress(body: bytes, *, uid: str, stage: Stage, attempt: int) -> Progress:
    """Read a progress document. Raises MalformedDocumentError if it is malformed or belongs to another run."""
    progress = _parse(Progress, body, MAXIMUM_PROGRESS_BYTES)
    _match_run(progress.uid, progress.stage, progress.attempt, uid, stage, attempt)
    return progress


def _match_run(
    found_uid: str, found_stage: Stage, found_attempt: int, uid: str, stage: Stage, attempt: int
) -> None:
    found, expected = (found_uid, found_stage, found_attempt), (uid, stage, attempt)
    if found != expected:
        raise MalformedDocumentError(
            f"must be for uid {uid}, stage {stage}, attempt {attempt}; "
            f"found {clean_text(found_uid)}, {found_stage}, {found_attempt}"
        )


def _parse(kind: type[_AnyDocument], body: bytes, maximum: int) -> _AnyDocument:
    if len(body) > maximum:
        raise MalformedDocumentError(f"must be at most {maximum} bytes, found {len(body)}")
    try:
        content = json.loads(body, parse_constant=_reject_constant)
    except (ValueError, RecursionError) as error:
        raise MalformedDocumentError(f"must be JSON, found {type(error).__name__}") from error
    try:
        return kind.model_validate(content)
    except (ValidationError, RecursionError) as error:
        raise MalformedDocumentError(_describe(error)) from error


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _describe(error: ValidationError | RecursionError) -> str:
    """The first violation, without the offending value, which is not trusted."""
    if isinstance(error, RecursionError):
        return "must not be nested so deeply"
    detail = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = ".".join(str(step) for step in detail["loc"])
    return clean_text(f"{path}: {detail['msg']}")[:256]
