"""The operator's types and the CRD agree.

The command line parses files that no API server has checked. The API server rejects a whole status if a part does not fit.
"""

from __future__ import annotations

import copy
import re
from datetime import UTC, datetime
from typing import Any

import jsonschema
from finetune_operator.api.destinations import BRANCH, IMAGE_TAG, REFERENCE, REPOSITORY
from finetune_operator.api.reasons import Reason, ReasonClass
from finetune_operator.api.sources import AZURE_URI, ENDPOINT, GCS_URI, S3_URI
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.stages import Stage
from finetune_operator.contract.result import MergeResult, PrepareResult, Progress, TrainResult
from finetune_operator.observed.observation import JobRecord
from finetune_operator.observed.outcomes import AttemptOutcome
from finetune_operator.settings import Settings
from finetune_operator.sizing.cost.prices import parse_cost
from finetune_operator.sizing.planning import make_plan
from finetune_operator.status.draft import StatusDraft

from tests.support.crd_schema import Schema, root_schema, strict_json_schema, walk
from tests.support.operator import PREPARE, SETTINGS
from tests.support.world import World

NOW = datetime(2026, 11, 24, 9, 30, tzinfo=UTC)
SPEC = root_schema()["properties"]["spec"]
STATUS = root_schema()["properties"]["status"]
MINIMAL: dict[str, Any] = {
    "model": {"source": {"huggingFace": {"repository": "org/name"}}},
    "dataset": {"source": {"configMap": {"name": "rows", "key": "train.jsonl"}}},
    "output": {"destination": {"persistentVolumeClaim": {"claimName": "models"}}},
}
DIGEST = f"sha256:{'0' * 64}"


def with_defaults(schema: Schema, value: Any) -> Any:
    """Return `value` with structural defaults, from the outside in, as the API server stores it."""
    if not isinstance(value, dict):
        return value
    result = dict(value)
    for name, field in schema.get("properties", {}).items():
        if name not in result and "default" in field:
            result[name] = copy.deepcopy(field["default"])
        if name in result:
            result[name] = with_defaults(field, result[name])
    return result


def without_empty(value: Any) -> Any:
    """Return `value` without empty members. The operator's types have an empty value if the CRD has no default."""
    if not isinstance(value, dict):
        return value
    cleaned = {name: without_empty(item) for name, item in value.items()}
    return {name: item for name, item in cleaned.items() if item not in ({}, [], "", None)}


def model_fields(schema: Schema, definitions: dict[str, Schema], path: str) -> dict[str, Schema]:
    """Return the fields of a pydantic model by path with their bounds. An optional field has the bounds of its type."""
    options = [option for option in schema.get("anyOf", []) if option.get("type") != "null"]
    if options:
        return model_fields(options[0], definitions, path)
    if "$ref" in schema:
        return model_fields(definitions[schema["$ref"].rpartition("/")[2]], definitions, path)
    found = {path: schema}
    for name, field in schema.get("properties", {}).items():
        found |= model_fields(field, definitions, f"{path}.{name}")
    if "items" in schema:
        found |= model_fields(schema["items"], definitions, f"{path}[]")
    return found


def test_defaults_are_the_same() -> None:
    parsed = FineTuneJobSpec.parse(MINIMAL).model_dump(mode="json", by_alias=True)
    assert without_empty(parsed) == without_empty(with_defaults(SPEC, MINIMAL))


def test_defaulted_object_and_its_file_parse_to_the_same_spec() -> None:
    assert FineTuneJobSpec.parse(with_defaults(SPEC, MINIMAL)) == FineTuneJobSpec.parse(MINIMAL)


def test_fields_are_the_same() -> None:
    schema = FineTuneJobSpec.model_json_schema(by_alias=True)
    ours = {path for path, _ in walk(SPEC, "spec") if not path.endswith("{}")}
    assert model_fields(schema, schema["$defs"], "spec").keys() == ours


def test_bounds_of_numbers_and_enums_are_the_same() -> None:
    schema = FineTuneJobSpec.model_json_schema(by_alias=True)
    theirs = model_fields(schema, schema["$defs"], "spec")
    # This is a field of Kubernetes, and the API server checks it again in the pod.
    unrepeated = "tolerations[].tolerationSeconds"
    different = []
    for path, original in walk(SPEC, "spec"):
        field = strict_json_schema(original)
        if path.endswith(unrepeated) or (
            field.get("type") not in {"integer", "number"} and "enum" not in field
        ):
            continue
        found = theirs[path]
        values = found.get("enum", [found["const"]] if "const" in found else None)
        if field.get("enum") != values:
            different.append((path, "enum"))
        if any(field.get(bound) != found.get(bound) for bound in ("minimum", "exclusiveMinimum")):
            different.append((path, "minimum"))
        if "maximum" in found and field["maximum"] != found["maximum"]:
            different.append((path, "maximum"))
    assert different == []


def test_unions_uris_and_endpoints_have_the_same_rules() -> None:
    """CEL in the CRD and the validation of files use the same patterns."""
    rules = {
        path: [rule["rule"] for rule in field.get("x-kubernetes-validations", [])]
        for path, field in walk(SPEC, "spec")
    }
    for source in ("spec.model.source", "spec.dataset.source", "spec.dataset.validation.source"):
        for member, pattern in (("s3", S3_URI), ("gcs", GCS_URI), ("azure", AZURE_URI)):
            assert rules[f"{source}.{member}.uri"] == [f"self.matches('{pattern}')"]
        assert rules[f"{source}.s3.endpoint"] == [f"self.matches('{ENDPOINT}')"]
        (union,) = (rule for rule in rules[source] if "filter" in rule)
        members = {path.rpartition(".")[2] for path in rules if path.rpartition(".")[0] == source}
        assert set(re.findall(r"has\(self\.(\w+)\)", union)) == members


def record(status: dict[str, Any]) -> JobRecord:
    return JobRecord(
        namespace="team",
        name="job",
        uid="uid",
        generation=1,
        resource_version="1",
        created=NOW,
        deleting=False,
        spec=MINIMAL,
        status=status,
    )


def begun() -> StatusDraft:
    plan = make_plan(FineTuneJobSpec.parse(MINIMAL), "cuda")
    return StatusDraft.begin(record({}), NOW).accept(DIGEST, plan).mark_started(NOW).record_job(NOW, "node1")


PREPARED = {
    "dataset": {
        "digest": DIGEST,
        "rows": 20,
        "kept": 18,
        "duplicates": 1,
        "rejected": {"NoAssistantTurn": 2},
        "trainingExamples": 16,
        "validationExamples": 2,
        "supervisedTokens": 300,
        "longestExample": 64,
        "format": {"name": "Messages", "why": "y" * 256},
        "source": {f"property{number}": "s" * 256 for number in range(16)},
        "validationSource": {"size": 2**62},
        "nearDuplicates": 1,
        "leaked": 1,
        "languages": [{"code": "l" * 16, "fraction": 1 / 3}] * 3,
        "reasoningFraction": 1 / 3,
        "promptVariety": 1e-9,
        "capacityRatio": 1e300,
        "coverage": {"targets": 3, "covered": 1},
        "shortened": 1,
        "warnings": [{"code": "FewRows", "value": 1 / 3, "threshold": 50, "message": "w" * 256}] * 8,
        "example": {"row": 1, "learned": "l" * 512},
    },
    "model": {
        "architecture": "LlamaForCausalLM",
        "parameters": 134515008,
        "commit": "c" * 40,
        "digest": DIGEST,
        "quantizedModules": 210,
        "bytes": 99999999,
    },
}
TRAINED = {
    "device": "NVIDIA L4",
    "steps": 40,
    "trainingLoss": 0.123456789,
    "adapterDigest": DIGEST,
    "evaluation": {
        "rows": 40,
        "baseLoss": 2.5,
        "tunedLoss": 0.2,
        "difference": -2.3,
        "interval": [-2.5, -2.1],
        "verdict": "Improved",
    },
    "selection": {
        "rows": 100,
        "measurements": 8,
        "plannedSteps": 2**31 - 1,
        "publishedStep": 30,
        "stoppedEarly": True,
        "bestStep": 30,
        "bestLoss": 1 / 3,
    },
}
MERGED = {
    "artifacts": [
        {"kind": kind, "uri": "u" * 512, "digest": DIGEST, "bytes": 269060552, "files": 8, "baseDigest": base}
        for kind, base in (("Adapter", DIGEST), ("Merged", None), ("BaseAsTrained", None))
    ],
    "verification": {
        "rows": 8,
        "tokens": 200,
        "klDivergence": 1e-05,
        "trainedLoss": 0.2,
        "mergedLoss": 0.2001,
        "prompt": "p" * 512,
        "answer": "a" * 512,
        "verdict": "Unproven",
        "baseDivergence": 1 / 3,
        "noiseDivergence": 1e-300,
        "slope": -1 / 3,
        "slopeTolerance": 1e300,
        "survivingUpdate": 1 / 3,
        "weakestTensor": "t" * 128,
        "weakestSurvival": -1 / 3,
        "adapterOnOriginalLoss": 1 / 3,
        "warnings": [{"code": "UpdateLost", "value": 1 / 3, "threshold": 0.9, "message": "w" * 256}] * 4,
    },
}
PROGRESS = {
    "version": "1.0",
    "uid": "uid",
    "stage": "Train",
    "attempt": 0,
    "activity": "Training",
    "step": 4,
    "totalSteps": 40,
    "loss": 1.5,
    "tokensPerSecond": 1234.5,
    "startTime": "2026-11-24T09:29:00Z",
    "heartbeatTime": "2026-11-24T09:30:00Z",
    "estimatedCompletionTime": "2026-11-24T09:40:00Z",
}


def check(draft: StatusDraft) -> dict[str, Any]:
    """Return the status after the CRD's schema has accepted it."""
    status = draft.to_status()
    jsonschema.validate(status, strict_json_schema(STATUS))
    return status


def test_every_status_of_a_successful_job_fits_the_crd() -> None:
    draft = begun()
    check(draft)
    draft = draft.apply_prepare_result(PrepareResult.model_validate(PREPARED))
    draft = draft.begin_stage(Stage.TRAIN)
    draft = draft.record_progress(Progress.model_validate(PROGRESS))
    check(draft)
    draft = draft.apply_train_result(TrainResult.model_validate(TRAINED))
    draft = draft.begin_stage(Stage.MERGE)
    draft = draft.apply_merge_result(MergeResult.model_validate(MERGED))
    draft = draft.complete()
    status = check(draft)
    shown = status["verification"]
    assert STATUS["properties"]["verification"]["properties"].keys() == shown.keys(), "every member is shown"
    assert {
        "dataset",
        "model",
        "evaluation",
        "verification",
        "artifacts",
        "plan",
        "progress",
    } <= status.keys()


def test_the_status_of_a_failed_job_fits_the_crd_with_any_text_length() -> None:
    draft = begun()
    message = "m" * 5000
    draft = draft.record_attempt(
        AttemptOutcome("Failed", ReasonClass.RETRYABLE, Reason.STAGE_LOST, message, exit_code=137, node="n1")
    )
    draft = draft.begin_attempt(1, NOW)
    check(draft)
    for attempt in range(1, 30):
        draft = draft.begin_attempt(attempt, NOW)
        draft = draft.record_attempt(
            AttemptOutcome("Interrupted", ReasonClass.INTERRUPTED, "Interrupted", message, exit_code=75)
        )
    draft = draft.fail(Reason.STAGE_LOST, message, tuple("l" * 256 for _ in range(20)))
    status = check(draft)
    assert len(status["attempts"]) == STATUS["properties"]["attempts"]["maxItems"]


def test_the_status_of_a_suspended_job_fits_the_crd() -> None:
    draft = begun()
    draft = draft.suspend()
    assert check(draft)["phase"] == "Suspended"


def test_the_reference_of_a_registry_has_the_same_pattern() -> None:
    fields = dict(walk(SPEC, "spec"))
    assert fields["spec.output.destinations[].oci.reference"]["pattern"] == REFERENCE
    assert fields["spec.output.destinations[].oci.imageTag"]["pattern"] == IMAGE_TAG


def test_the_repository_and_the_branch_of_a_hub_have_the_same_patterns() -> None:
    fields = dict(walk(SPEC, "spec"))
    hub = "spec.output.destinations[].huggingFace"
    assert fields[f"{hub}.repository"]["pattern"] == REPOSITORY
    assert fields[f"{hub}.revision"]["pattern"] == BRANCH


def test_time_and_cost_of_the_largest_job_fit_the_crd_at_every_moment() -> None:
    prices = {"currency": "EUR", "prices": [{"perGpuHour": 1_000_000_000}]}
    settings = Settings(trainer=SETTINGS.trainer, cost=parse_cost(prices))
    world = World(settings=settings)
    world.settle()
    most = dict.fromkeys(
        ("trainingExamples", "validationExamples", "supervisedTokens", "trainingTokens"), 2**63 - 1
    )
    world.succeed(Stage.PREPARE, prepare={**PREPARE, "dataset": {**PREPARE["dataset"], **most}})
    world.settle()
    jsonschema.validate(world.job.status, strict_json_schema(STATUS))
    assert "expectedSeconds" in world.job.status["plan"]["duration"]
    world.run_pod("demo-train-0")
    world.settle()
    jsonschema.validate(world.job.status, strict_json_schema(STATUS))
    assert "gpuTime" in world.job.status["stage"]
    world.wait(10**8)
    world.fail(Stage.TRAIN, "InternalError")
    world.settle()
    jsonschema.validate(world.job.status, strict_json_schema(STATUS))
    assert world.job.status["usage"]["cost"]["amount"] == "27777777777777.777778"
