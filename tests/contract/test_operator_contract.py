"""The operator's side of the contract: its documents follow the schemas, and it reads every document that they allow."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from finetune_operator.api.network import Network
from finetune_operator.api.plan import Layout, Plan, Rung
from finetune_operator.api.reasons import OPERATOR_CLASSES, TRAINER_CLASSES, Reason
from finetune_operator.api.spec import FineTuneJobSpec, spec_hash
from finetune_operator.api.stages import WORK_STAGES, Stage
from finetune_operator.api.validation import check
from finetune_operator.contract.identity import JobIdentity
from finetune_operator.contract.mounts import pod_paths
from finetune_operator.contract.network import retry_seconds
from finetune_operator.contract.reading import MAXIMUM_RESULT_BYTES, parse_progress, parse_result
from finetune_operator.contract.report_task import report_task
from finetune_operator.contract.run_spec import Limits, build_run_spec
from finetune_operator.sizing.planning import make_plan

from tests.support.operator import (
    DIGEST,
    MERGE,
    TRAIN,
    UID,
    make_failure,
    make_job,
    make_progress,
    make_result,
    make_spec,
)
from tests.support.repository import ROOT
from tests.support.world import World

CONTRACT = ROOT / "contract"


def read_json(name: str) -> Any:
    return json.loads((CONTRACT / name).read_text())


def make_run_spec(spec: dict[str, Any], plan: Plan | None = None) -> dict[str, Any]:
    """Return the run spec that the operator writes for this spec, with the `plan` or a frugal one."""
    parsed = FineTuneJobSpec.parse(spec)
    check("demo", parsed)
    job = JobIdentity("team", "demo", UID)
    return build_run_spec(
        job=job,
        spec=parsed,
        spec_hash=spec_hash(parsed),
        plan=plan or make_plan(parsed, "cuda"),
        paths=pod_paths(job, parsed),
        device="cuda",
        limits=Limits(
            2**30,
            600,
            allow_private_addresses=False,
            retry_seconds=retry_seconds(parsed.network, Network()),
        ),
        telemetry_port=9500,
        attempt=0,
    )


HUB = {
    "source": {
        "huggingFace": {
            "repository": "org/name",
            "revision": "main",
            "tokenSecretRef": {"name": "hub", "key": "token"},
        }
    },
    "chatTemplate": {"configMapKeyRef": {"name": "templates", "key": "chat.jinja"}},
    "chatTemplateArguments": {"enable_thinking": False, "level": 2, "style": "short"},
}
SPECS = {
    "minimal": make_spec(),
    "as-base": make_spec(
        output={"destination": {"persistentVolumeClaim": {"claimName": "artifacts"}}, "dtype": "AsBase"}
    ),
    "signed": make_spec(
        output={
            "destination": {"persistentVolumeClaim": {"claimName": "artifacts"}},
            "signing": {"keySecretRef": {"name": "model-signing", "key": "signing.key"}},
        }
    ),
    "gated": make_spec(
        evaluation={"gate": "WithholdUnlessImproved", "minimumRows": 5},
        output={
            "artifacts": ["Adapter", "Merged", "BaseAsTrained"],
            "destination": {"persistentVolumeClaim": {"claimName": "artifacts"}},
            "mergeOnto": "OriginalWeights",
        },
    ),
    "answering": make_spec(
        evaluation={
            "generatedRows": 64,
            "metrics": ["ExactMatch", "JsonFields"],
            "samplePrompts": ["Where is IATA code ORM?", "Grüße"],
        }
    ),
    "url-and-hub": make_spec(
        model=HUB,
        dataset={
            "source": {"url": {"secretKeyRef": {"name": "data", "key": "url"}}},
            "validation": {"source": {"persistentVolumeClaim": {"claimName": "rows", "path": "v/a.jsonl"}}},
            "reasoning": "Strip",
            "rejectedRows": {"maximumFraction": 0},
        },
        training={
            "maximumSteps": 40,
            "microBatchSize": 4,
            "lora": {"rank": 8, "variant": "DoRA"},
            "schedule": {"type": "Linear", "warmupRatio": 0},
            "gradientCheckpointing": "Forbid",
        },
        output={
            "artifacts": ["Merged"],
            "destination": {"persistentVolumeClaim": {"claimName": "artifacts", "path": "a/b"}},
        },
    ),
    "hub-dataset": make_spec(
        dataset={
            "source": {
                "huggingFace": {
                    "repository": "org/rows",
                    "revision": "v2",
                    "configuration": "chat",
                    "split": "train.clean",
                    "tokenSecretRef": {"name": "hub", "key": "token"},
                }
            },
            "validation": {"source": {"huggingFace": {"repository": "org/rows", "path": "held/out.jsonl"}}},
            "format": "ShareGPT",
            "targetPrompts": {"configMapKeyRef": {"name": "production", "key": "prompts.txt"}},
            "thresholds": {"leakedFraction": 0.25, "minimumRows": 10},
        },
        modelCache={"claimName": "models"},
    ),
    "selecting": make_spec(
        training={
            "maximumSteps": 400,
            "learningRate": 0.0004,
            "weightDecay": 0.01,
            "maximumGradientNorm": 0.3,
            "neftuneNoiseAlpha": 5,
            "routerAuxLossCoefficient": 0.01,
            "packing": "Never",
            "kernels": "Reference",
            "earlyStopping": {"patience": 2, "minimumImprovement": 0.01},
            "checkpoint": {"intervalSteps": 100, "keep": "Best"},
        },
    ),
    "patient": make_spec(network={"retrySeconds": 1800}),
    "destinations": make_spec(
        output={
            "destinations": [
                {
                    "name": "bucket",
                    "s3": {
                        "uri": "s3://models/team/bot",
                        "endpoint": "https://minio.example.com:9000",
                        "secretRef": {"name": "store"},
                    },
                },
                {
                    "name": "the-claim",
                    "persistentVolumeClaim": {"claimName": "artifacts", "path": "a/b"},
                    "overwrite": True,
                },
                {"name": "cloud", "gcs": {"uri": "gs://models/team/bot"}, "overwrite": False},
                {
                    "name": "registry",
                    "oci": {
                        "reference": "registry.example.com/team/bot:1",
                        "imageTag": "1-volume",
                        "secretRef": {"name": "registry"},
                    },
                },
                {"name": "mirror", "oci": {"reference": "localhost:5000/bot:1"}},
                {
                    "name": "hub",
                    "huggingFace": {
                        "repository": "team/bot",
                        "tokenSecretRef": {"name": "hub", "key": "token"},
                    },
                },
                {
                    "name": "public-hub",
                    "huggingFace": {
                        "repository": "team/open-bot",
                        "private": False,
                        "revision": "v2",
                        "tokenSecretRef": {"name": "hub", "key": "token"},
                    },
                },
            ]
        }
    ),
    "object-stores": make_spec(
        model={"source": {"gcs": {"uri": "gs://models/org/name"}}},
        dataset={
            "source": {
                "s3": {
                    "uri": "s3://bucket/rows/train.parquet",
                    "endpoint": "https://minio.example.com:9000",
                    "region": "eu-central-1",
                    "secretRef": {"name": "store"},
                }
            },
            "validation": {
                "source": {
                    "azure": {"uri": "az://account/rows/held-out.jsonl", "secretRef": {"name": "azure"}}
                }
            },
        },
    ),
}


@pytest.mark.parametrize("name", SPECS)
def test_run_specs_follow_the_schema_and_the_fixture(name: str) -> None:
    """The trainer's tests read the same fixtures."""
    run_spec = make_run_spec(SPECS[name])
    jsonschema.validate(run_spec, read_json("run.schema.json"))
    assert run_spec == read_json(f"fixtures/run.{name}.json")


def test_a_run_spec_names_optimizers_and_weights_that_are_not_the_default() -> None:
    plan = replace(
        make_plan(FineTuneJobSpec.parse(make_spec()), "cuda"),
        micro_batch_size=4,
        gradient_checkpointing=False,
        optimizer="AdamW",
        weights="Dequantized",
        ladder=(
            Rung(2, False, "AdamW", "Dequantized"),
            Rung(1, True, "AdamW8Bit"),
            Rung(1, True, "PagedAdamW8Bit"),
        ),
    )
    run_spec = make_run_spec(make_spec(), plan)
    jsonschema.validate(run_spec, read_json("run.schema.json"))
    assert run_spec == read_json("fixtures/run.planned.json")


@pytest.mark.parametrize(
    ("name", "layout"),
    [("ranked", Layout(2, 4, "FullyShard")), ("one-node", Layout(1, 2)), ("minimal", Layout())],
)
def test_a_run_spec_names_the_ranks_of_several_gpus(name: str, layout: Layout) -> None:
    spec = SPECS["minimal"]
    run_spec = make_run_spec(spec, replace(make_plan(FineTuneJobSpec.parse(spec), "cuda"), layout=layout))
    jsonschema.validate(run_spec, read_json("run.schema.json"))
    minimal = read_json("fixtures/run.minimal.json")
    if layout.gpus > 1:
        minimal["ranks"] = {"nodes": layout.nodes, "perNode": layout.per_node}
    if layout.parallelism == "FullyShard":
        minimal["training"]["parallelism"] = "FullyShard"
    assert run_spec == minimal
    if name != "one-node":
        assert run_spec == read_json(f"fixtures/run.{name}.json")


def test_a_run_spec_for_the_report_names_the_end_and_the_places() -> None:
    spec = FineTuneJobSpec.parse(SPECS["destinations"])
    status = {
        "failure": {"stage": "Train", "reason": "HostOutOfMemory", "message": "killed", "logTail": ["last"]},
        "attempts": [
            {"stage": "Train", "attempt": 0, "outcome": "Failed", "reason": "HostOutOfMemory", "node": "n"}
        ],
    }
    paths = pod_paths(JobIdentity("team", "demo", UID), spec)
    run_spec = make_run_spec(SPECS["destinations"])
    run_spec["report"] = report_task(spec, paths, UID, status, succeeded=False)
    jsonschema.validate(run_spec, read_json("run.schema.json"))
    assert run_spec == read_json("fixtures/run.report.json")


@pytest.mark.parametrize("name", ["minimal", "url-and-hub"])
def test_a_trainer_of_the_first_version_can_read_the_run_spec_of_its_jobs(name: str) -> None:
    """A trainer rejects unknown members, and it may be one minor version older."""
    run_spec = make_run_spec(SPECS[name])
    assert run_spec.keys() == FIRST_VERSION["run"]
    assert run_spec["dataset"].keys() == FIRST_VERSION["dataset"]
    assert run_spec["evaluation"].keys() == {"maximumRows"}
    assert run_spec["output"].keys() == {"artifacts", "destination"}
    assert run_spec["dataset"]["source"]["kind"] in {"File", "Url"}
    assert run_spec["model"]["source"]["kind"] in {"Directory", "HuggingFace"}


FIRST_VERSION = {
    "run": {
        "version",
        "job",
        "specHash",
        "attempt",
        "device",
        "model",
        "dataset",
        "training",
        "evaluation",
        "output",
        "workspace",
        "telemetry",
        "limits",
    },
    "dataset": {"source", "validation", "reasoning", "rejectedRows"},
}


def test_warnings_of_the_first_version_have_a_message_but_no_code() -> None:
    document = make_result(Stage.PREPARE)
    document["version"] = "1.0"
    document["prepare"]["dataset"]["warnings"] = ["3 of 20 rows repeat another row"]
    result = parse_result(json.dumps(document), uid=UID, stage=Stage.PREPARE, attempt=0)
    assert result.prepare is not None
    (warning,) = result.prepare.dataset.warnings
    assert (warning.code, warning.value) == ("Unnamed", None)
    assert warning.message == "3 of 20 rows repeat another row"


def test_reasons_and_their_classes_are_the_same_as_in_the_contract() -> None:
    job_reasons = read_json("reasons.json")["job"]
    for source, classes in (("operator", OPERATOR_CLASSES), ("trainer", TRAINER_CLASSES)):
        expected = {name: entry["class"] for name, entry in job_reasons.items() if source in entry["source"]}
        assert {str(reason): str(kind) for reason, kind in classes.items()} == expected
    assert set(OPERATOR_CLASSES) == set(Reason)


@pytest.mark.parametrize("stage", WORK_STAGES)
def test_results_in_tests_follow_the_schema_and_fit_a_termination_message(stage: Stage) -> None:
    schema = read_json("result.schema.json")
    for document in (make_result(stage), make_failure(stage, "InvalidDataset")):
        jsonschema.validate(document, schema)
        assert len(json.dumps(document)) <= MAXIMUM_RESULT_BYTES
        assert parse_result(json.dumps(document), uid=UID, stage=stage, attempt=0).uid == UID


def test_progress_in_tests_follows_the_schema() -> None:
    document = json.loads(make_progress(Stage.TRAIN).model_dump_json(by_alias=True))
    jsonschema.validate(document, read_json("progress.schema.json"))


@pytest.mark.parametrize(
    "path", sorted((CONTRACT / "fixtures").glob("result.*.json")), ids=lambda path: path.name
)
def test_the_operator_reads_the_trainers_result_fixtures(path: Path) -> None:
    document = json.loads(path.read_text())
    jsonschema.validate(document, read_json("result.schema.json"))
    stage, attempt = Stage(document["stage"]), document["attempt"]
    result = parse_result(json.dumps(document), uid=document["uid"], stage=stage, attempt=attempt)
    assert result.outcome == document["outcome"]


@pytest.mark.parametrize(
    "path", sorted((CONTRACT / "fixtures").glob("progress.*.json")), ids=lambda path: path.name
)
def test_the_operator_reads_the_trainers_progress_fixtures(path: Path) -> None:
    document = json.loads(path.read_text())
    stage, attempt = Stage(document["stage"]), document["attempt"]
    progress = parse_progress(path.read_bytes(), uid=document["uid"], stage=stage, attempt=attempt)
    assert progress.activity == document["activity"]


def status_schema() -> dict[str, Any]:
    """Return the CRD's schema of status in a strict form. The API server drops unknown members silently."""
    crd = yaml.safe_load((ROOT / "crds" / "finetunejobs.yaml").read_text())
    schema: dict[str, Any] = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]
    _close(schema)
    return schema


def _close(schema: dict[str, Any]) -> None:
    """Reject members that the schema does not name. A map keeps the schema of its values."""
    if "properties" in schema:
        schema["additionalProperties"] = False
        for member in schema["properties"].values():
            _close(member)
    if "items" in schema:
        _close(schema["items"])


def assert_fits_crd(world: World) -> None:
    jsonschema.validate(
        world.job.status, status_schema(), format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )


def test_every_status_of_a_successful_job_fits_the_crd() -> None:
    world = World()
    for stage in WORK_STAGES:
        world.settle()
        assert_fits_crd(world)
        world.run_pod(f"demo-{stage.slug}-0")
        world.progress = make_progress(
            stage, tokensPerSecond=12.5, estimatedCompletionTime="2026-11-24T10:00:00Z"
        )
        world.settle()
        assert_fits_crd(world)
        world.succeed(stage, peakMemoryBytes=123)
    world.settle()
    assert_fits_crd(world)
    assert world.job.status["phase"] == "Succeeded"


@pytest.mark.parametrize("reason", ["InternalError", "InvalidDataset"])
def test_statuses_of_failures_with_the_longest_texts_fit_the_crd(reason: str) -> None:
    world = World()
    world.settle()
    document = make_failure(Stage.PREPARE, reason)
    document["message"] = "\u00e9" * 1024
    document["logTail"] = ["x" * 60] * 20
    world.end_pod("demo-prepare-0", json.dumps(document, ensure_ascii=False), 69)
    world.settle()
    assert world.job.status["attempts"][0]["reason"] == reason
    assert_fits_crd(world)


def test_a_suspended_and_a_rejected_job_fit_the_crd() -> None:
    suspended = World(job=make_job(spec=make_spec(suspend=True)))
    suspended.settle()
    assert_fits_crd(suspended)
    rejected = World(job=make_job(spec=make_spec(training={"microBatchSize": 3})))
    rejected.settle()
    assert_fits_crd(rejected)


@pytest.mark.parametrize("name", ["prepare-ended", "prepare-reported", "prepare-completed"])
def test_statuses_of_all_versions_dataset_reports_fit_the_crd(name: str) -> None:
    """`prepare-completed` has version 1.0, in which a warning is its message alone."""
    prepare = read_json(f"fixtures/result.{name}.json")["prepare"]
    world = World()
    world.settle()
    world.succeed(Stage.PREPARE, prepare=prepare)
    world.settle()
    assert_fits_crd(world)
    shown = world.job.status["dataset"]
    assert len(shown["warnings"]) == 1
    assert shown["warnings"][0]["message"]
    assert not any(isinstance(value, float) for value in _scalars(shown)), "Kubernetes APIs avoid floats"


def _scalars(value: Any) -> list[Any]:
    """Yield every number and text in nested lists and objects."""
    if isinstance(value, dict):
        return [scalar for item in value.values() for scalar in _scalars(item)]
    if isinstance(value, list):
        return [scalar for item in value for scalar in _scalars(item)]
    return [value]


def test_skipped_stages_fit_the_crd() -> None:
    world = World()
    world.settle()
    world.succeed(Stage.PREPARE, completed={"train": TRAIN, "merge": MERGE})
    world.settle()
    assert world.job.status["model"]["digest"] == DIGEST
    assert_fits_crd(world)
