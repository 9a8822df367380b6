"""Trackers that get a record of the run, with the same members in a FineTuneJob and in the administrator's settings."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from finetune_operator.api.sources import SecretRef, SpecValue

TRACKER = r"^https?://[^/?#@ ]+(/[^?#@ ]*)?$"
"""The CRD and the chart have the same pattern. It accepts no user, no password and no query."""
TRACKED_NAME = r"^[^'\"/:]+$"
"""MLflow accepts no slash and no colon in the name of a model, and its search has no escape for quotes."""

TrackerAddress = Annotated[str, Field(min_length=1, max_length=512, pattern=TRACKER)]
TrackedName = Annotated[str, Field(min_length=1, max_length=256, pattern=TRACKED_NAME)]


class Mlflow(SpecValue):
    """An MLflow tracking server. Without `experiment` the namespace names it.

    Without `registered_model`, no model version is registered.
    """

    uri: TrackerAddress
    experiment: TrackedName | None = None
    registered_model: TrackedName | None = None
    secret_ref: SecretRef | None = None


class ModelRegistry(SpecValue):
    """A Kubeflow model registry. Without `registered_model` the namespace names the model."""

    uri: TrackerAddress
    registered_model: TrackedName | None = None
    secret_ref: SecretRef | None = None


class Tracking(SpecValue):
    """The trackers of a job. In a job, an object without members stands for none, whatever the administrator sets."""

    mlflow: Mlflow | None = None
    model_registry: ModelRegistry | None = None
