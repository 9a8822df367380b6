"""Builds the batch/v1 Job of the current attempt from the spec, the recorded plan and the sizing."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from finetune_operator.api.plan import DEFAULT_OPTIMIZER, DEFAULT_WEIGHTS, ONE_GPU, Plan
from finetune_operator.api.spec import FineTuneJobSpec, spec_hash
from finetune_operator.api.stages import (
    PLACEMENT_ANNOTATION,
    POD_DEFAULTS_ANNOTATION,
    SUSPENSION_ANNOTATION,
    Stage,
)
from finetune_operator.contract.identity import JobIdentity
from finetune_operator.contract.mounts import pod_paths
from finetune_operator.contract.network import retry_seconds
from finetune_operator.contract.report_task import report_task
from finetune_operator.contract.run_spec import (
    ESTIMATE_SINCE,
    LADDER_SINCE,
    OPTIMIZER_SINCE,
    RATE_REASON_SINCE,
    TRACKING_SINCE,
    build_run_spec,
)
from finetune_operator.contract.tracking import NO_TRACKERS, Trackers, choose_trackers
from finetune_operator.lifecycle.pod_defaults import defaults_digest
from finetune_operator.lifecycle.recorded_plan import recorded_layout, recorded_optimizers, recorded_plan
from finetune_operator.lifecycle.sizing import Feasible, shape_of
from finetune_operator.manifests.job_sets import as_job_set
from finetune_operator.manifests.jobs import build_job
from finetune_operator.observed.observation import JobRecord
from finetune_operator.placement.constraints import Placement
from finetune_operator.settings import Settings
from finetune_operator.sizing.hosts import REPORT_HOST, HostNeeds, stage_host
from finetune_operator.status import reporting
from finetune_operator.status.draft import StatusDraft


def size_host(spec: FineTuneJobSpec, draft: StatusDraft, settings: Settings, out_of_memory: int) -> HostNeeds:
    """Compute what the current stage's pod needs from its node.

    `out_of_memory` is the number of attempts that were killed for exceeding their memory.
    """
    trainer = settings.trainer
    dataset = draft.dataset
    return stage_host(
        spec,
        draft.stage,
        shape_of(draft),
        None if dataset is None else reporting.read_dataset(dataset),
        trainer.resources.of(draft.stage),
        out_of_memory,
        device=trainer.device,
        device_bytes=(draft.plan.get("memory") or {}).get("deviceBytes"),
        optimizers=recorded_optimizers(draft.plan),
        processes=recorded_layout(spec, draft.plan).per_node,
    )


def build_stage_job(
    job: JobRecord,
    spec: FineTuneJobSpec,
    draft: StatusDraft,
    settings: Settings,
    feasible: Feasible | None,
    placement: Placement,
    host: HostNeeds,
    read_only_claims: Collection[str] = (),
) -> dict[str, Any]:
    """Build the Job or JobSet to create. TRAIN takes its place from `feasible`, the other stages from `placement`.

    `read_only_claims` are the job's claims that nobody can write to.
    """
    trainer = settings.trainer
    training = feasible if draft.stage is Stage.TRAIN else None
    plan = training.plan if training is not None else recorded_plan(spec, draft.plan, trainer.device)
    trackers = choose_trackers(spec.tracking, trainer.tracking)
    if trackers.of_administrator and not draft.speaks(TRACKING_SINCE, trainer.image):
        # No job asks for them, and another image may reject them. PREPARE and TRAIN do not need them.
        trackers = NO_TRACKERS
    run_spec = _run_spec(job, spec, draft, settings, plan, trackers)
    body = build_job(
        job,
        spec,
        draft.stage,
        draft.attempt,
        run_spec,
        trainer,
        affinity=placement.affinity if training is None else {"nodeAffinity": training.affinity},
        host=host,
        tolerates_gpu_nodes=placement.tolerates_gpu_nodes,
        read_only_claims=read_only_claims,
        allowed_labels=settings.cost.labels,
        trackers=trackers,
        layout=plan.layout if draft.stage is Stage.TRAIN else ONE_GPU,
    )
    made_for = {
        PLACEMENT_ANNOTATION: "" if training is None else training.digest,
        POD_DEFAULTS_ANNOTATION: defaults_digest(trainer, draft.stage),
    }
    own = {key: value for key, value in made_for.items() if value}
    own[SUSPENSION_ANNOTATION] = "false"
    body["metadata"]["annotations"] = {**body["metadata"].get("annotations", {}), **own}
    return as_job_set(body) if settings.job_sets and body["spec"]["parallelism"] > 1 else body


def build_report_job(
    job: JobRecord,
    spec: FineTuneJobSpec,
    draft: StatusDraft,
    settings: Settings,
    placement: Placement,
    read_only_claims: Collection[str] = (),
    *,
    copies: bool = True,
    trackers: Trackers = NO_TRACKERS,
) -> dict[str, Any]:
    """Build the Job after the end of a job. It copies the report to the destinations, and tells `trackers` of a failure."""
    trainer = settings.trainer
    identity = JobIdentity(job.namespace, job.name, job.uid)
    plan = recorded_plan(spec, draft.plan, trainer.device)
    run_spec = _run_spec(job, spec, draft, settings, plan, trackers)
    paths = pod_paths(identity, spec)
    task = report_task(spec, paths, job.uid, draft.fields, succeeded=draft.succeeded, copies=copies)
    body = build_job(
        job,
        spec,
        Stage.REPORT,
        0,
        {**run_spec, "attempt": 0, "report": task},
        trainer,
        affinity=placement.affinity,
        host=REPORT_HOST,
        tolerates_gpu_nodes=placement.tolerates_gpu_nodes,
        read_only_claims=read_only_claims,
        allowed_labels=settings.cost.labels,
        trackers=trackers,
    )
    body["metadata"]["annotations"] = {
        **body["metadata"].get("annotations", {}),
        SUSPENSION_ANNOTATION: "false",
    }
    return body


def _run_spec(
    job: JobRecord,
    spec: FineTuneJobSpec,
    draft: StatusDraft,
    settings: Settings,
    plan: Plan,
    trackers: Trackers = NO_TRACKERS,
) -> dict[str, Any]:
    """The run spec of the current attempt for a trainer that runs this plan."""
    trainer = settings.trainer
    identity = JobIdentity(job.namespace, job.name, job.uid)
    if not draft.speaks(LADDER_SINCE, trainer.image):
        plan = replace(plan, ladder=())
    if not draft.speaks(OPTIMIZER_SINCE, trainer.image):
        # Another image may know no optimizers. If it does, it continues with that of the checkpoint.
        plain: dict[str, Any] = {"optimizer": DEFAULT_OPTIMIZER, "weights": DEFAULT_WEIGHTS}
        plan = replace(plan, **plain, ladder=tuple(replace(rung, **plain) for rung in plan.ladder))
    limits = trainer.limits.to_limits(retry_seconds(spec.network, trainer.network))
    if settings.job_policy.limits_of(job.namespace).forbid_private_addresses:
        limits = replace(limits, allow_private_addresses=False)
    return build_run_spec(
        job=identity,
        spec=spec,
        spec_hash=draft.spec_hash or spec_hash(spec),
        plan=plan,
        paths=pod_paths(identity, spec),
        device=trainer.device,
        limits=limits,
        telemetry_port=trainer.telemetry_port,
        attempt=draft.attempt,
        explains_rate=draft.speaks(RATE_REASON_SINCE, trainer.image),
        trackers=trackers,
        estimate=draft.plan.get("memory") if draft.speaks(ESTIMATE_SINCE, trainer.image) else None,
    )
