"""Builds the objects of a whole job before it starts, so that the API server can check them without storing them.

Otherwise a label or a security setting that an admission plugin refuses would show only after PREPARE's hour.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Any

from finetune_operator.api.spec import FineTuneJobSpec, spec_hash
from finetune_operator.api.stages import WORK_STAGES
from finetune_operator.lifecycle.stage_jobs import build_stage_job, size_host
from finetune_operator.manifests.jobs import build_workspace_claim
from finetune_operator.observed.observation import JobRecord
from finetune_operator.placement.constraints import Placement
from finetune_operator.settings import Settings
from finetune_operator.sizing.hosts import DEFAULT_WORKSPACE_SIZE
from finetune_operator.sizing.planning import make_plan
from finetune_operator.status.draft import StatusDraft


def settings_digest(spec: FineTuneJobSpec) -> str:
    """A digest of what a user decides about the objects; empty if it is all default."""
    parts = (spec.pod_template, spec.resources, spec.workspace, spec.network)
    queues = spec.model_dump_json(include={"queue_name", "cpu_queue_name"}, exclude_defaults=True)
    texts = [*(part.model_dump_json(exclude_defaults=True) for part in parts), queues]
    if all(text == "{}" for text in texts):
        return ""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def rehearsal_objects(
    job: JobRecord, spec: FineTuneJobSpec, settings: Settings, now: datetime
) -> tuple[dict[str, Any], ...]:
    """The workspace's claim and the first Job of each stage, with the sizes that are known before PREPARE."""
    trainer = settings.trainer
    draft = StatusDraft.begin(job, now).accept(spec_hash(spec), make_plan(spec, trainer.device))
    jobs = []
    for stage in WORK_STAGES:
        draft = draft.begin_stage(stage)
        host = size_host(spec, draft, settings, 0)
        jobs.append(build_stage_job(job, spec, draft, settings, None, Placement(), host))
    if spec.workspace.existing_claim is not None:
        return tuple(jobs)
    claim = build_workspace_claim(job, spec, DEFAULT_WORKSPACE_SIZE, trainer.defaults, settings.cost.labels)
    return (claim, *jobs)
