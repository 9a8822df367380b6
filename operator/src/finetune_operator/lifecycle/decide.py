"""The heart of the operator: from an observation to a decision. It does no I/O, and the clock is an argument.

PREPARE, TRAIN and MERGE run one after the other, each as one batch/v1 Job per attempt. The status is the record. It is
written before any action, so if the operator dies at any point, the next decision continues from there. Only the first
start of a new job needs no record.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from finetune_operator.lifecycle.actions import Decision, Need
from finetune_operator.lifecycle.first_start import needs_no_record
from finetune_operator.lifecycle.reconciliation import Reconciliation, Step
from finetune_operator.lifecycle.steps.accept import accept_job
from finetune_operator.lifecycle.steps.attempt import end_attempt
from finetune_operator.lifecycle.steps.await_movement import await_movement
from finetune_operator.lifecycle.steps.cleanup import delete_finished_jobs, delete_workspace
from finetune_operator.lifecycle.steps.deadline import await_deadline, enforce_deadline
from finetune_operator.lifecycle.steps.feasibility import check_feasibility
from finetune_operator.lifecycle.steps.follow import follow_stage
from finetune_operator.lifecycle.steps.image_pull import record_image_pull
from finetune_operator.lifecycle.steps.leave_queue import leave_queue
from finetune_operator.lifecycle.steps.lost_nodes import remove_lost_pods
from finetune_operator.lifecycle.steps.meter import meter_gpus
from finetune_operator.lifecycle.steps.pause import stall_job, suspend_job
from finetune_operator.lifecycle.steps.policy import hold_denied_job
from finetune_operator.lifecycle.steps.reclaim import reclaim_gpu
from finetune_operator.lifecycle.steps.refused import hold_refused_actions
from finetune_operator.lifecycle.steps.renew import renew_waiting_stage
from finetune_operator.lifecycle.steps.report import publish_report
from finetune_operator.lifecycle.steps.start import start_stage
from finetune_operator.lifecycle.steps.supply_claim import supply_claim
from finetune_operator.lifecycle.steps.unwatched import reread_unwatched
from finetune_operator.observed.observation import Observation
from finetune_operator.settings import Settings
from finetune_operator.status.stored import conditions_problem

STEPS: tuple[Step, ...] = (
    accept_job,
    reread_unwatched,
    remove_lost_pods,
    meter_gpus,
    record_image_pull,
    enforce_deadline,
    end_attempt,
    reclaim_gpu,
    renew_waiting_stage,
    check_feasibility,
    hold_denied_job,
    leave_queue,
    supply_claim,
    publish_report,
    delete_finished_jobs,
    delete_workspace,
    suspend_job,
    stall_job,
    start_stage,
    follow_stage,
    await_deadline,
    await_movement,
    hold_refused_actions,
)
"""Every policy, in order. Each one sees the status that the policies before it have left."""


def decide(observation: Observation, settings: Settings, now: datetime) -> Decision | Need:
    """Decide about one FineTuneJob, or say what the observation lacks.

    The same observation always gives the same decision.
    """
    if observation.job.deleting:
        # The garbage collector deletes the children of a deleted job.
        return Decision()
    problem = conditions_problem(observation.job.status)
    if problem is not None:
        # Not even the message of a hold could be written without losing what another version has recorded.
        return Decision(problem=problem)
    state = Reconciliation.begin(observation, settings, now)
    for step in STEPS:
        found = step(state)
        if isinstance(found, Need):
            return found
        state = found
        if state.held:
            break
    return replace(state.to_decision(), acts_first=needs_no_record(state))
