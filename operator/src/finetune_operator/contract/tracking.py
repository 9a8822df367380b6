"""The trackers of a run: those of the job, or else those of the administrator."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from finetune_operator.api.tracking import Tracking
from finetune_operator.contract.credentials import SecretPrefix
from finetune_operator.contract.identity import JobIdentity

MLFLOW_PREFIX = "FINETUNE_MLFLOW_"
MODEL_REGISTRY_PREFIX = "FINETUNE_MODEL_REGISTRY_"


@dataclass(frozen=True)
class Trackers:
    """The trackers of a run. Those `of_administrator` may have any address."""

    tracking: Tracking
    of_administrator: bool

    def __bool__(self) -> bool:
        return self.tracking != Tracking()

    def for_failed_runs(self) -> Trackers:
        """Those that have runs. A registry has models, and a failed job has none."""
        return replace(self, tracking=self.tracking.model_copy(update={"model_registry": None}))


NO_TRACKERS = Trackers(Tracking(), of_administrator=False)


def choose_trackers(job: Tracking | None, administrator: Tracking) -> Trackers:
    """The job's own trackers replace the administrator's, all of them."""
    return (
        Trackers(administrator, of_administrator=True)
        if job is None
        else Trackers(job, of_administrator=False)
    )


def tracking_document(trackers: Trackers, job: JobIdentity) -> dict[str, Any]:
    """The member `tracking` of the run spec. The namespace names what has no name."""
    mlflow, registry = trackers.tracking.mlflow, trackers.tracking.model_registry
    shared = {"anyAddress": True} if trackers.of_administrator else {}
    found: dict[str, Any] = {}
    if mlflow is not None:
        found["mlflow"] = {
            "uri": mlflow.uri,
            "experiment": mlflow.experiment or job.namespace,
            **({} if mlflow.registered_model is None else {"registeredModel": mlflow.registered_model}),
            **({} if mlflow.secret_ref is None else {"credentialsPrefix": MLFLOW_PREFIX}),
            **shared,
        }
    if registry is not None:
        found["modelRegistry"] = {
            "uri": registry.uri,
            "registeredModel": registry.registered_model or job.namespace,
            **({} if registry.secret_ref is None else {"credentialsPrefix": MODEL_REGISTRY_PREFIX}),
            **shared,
        }
    return found


def tracking_secret_prefixes(trackers: Trackers) -> list[SecretPrefix]:
    """The whole Secrets of the trackers."""
    tracking = trackers.tracking
    named = ((MLFLOW_PREFIX, tracking.mlflow), (MODEL_REGISTRY_PREFIX, tracking.model_registry))
    return [
        SecretPrefix(prefix, tracker.secret_ref.name)
        for prefix, tracker in named
        if tracker is not None and tracker.secret_ref is not None
    ]
