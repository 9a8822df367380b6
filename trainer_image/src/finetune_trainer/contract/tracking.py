"""The trackers that get a record of the run: `tracking` of the run spec, since contract 1.9."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune_trainer.contract.part import Part
from finetune_trainer.contract.value import Value

ADDRESS = r"^https?://[^/?#@ ]+(/[^?#@ ]*)?$"
"""A URL without user, query and fragment. The CRD has the same pattern."""

MLFLOW: Literal["MLflow"] = "MLflow"
MODEL_REGISTRY: Literal["KubeflowModelRegistry"] = "KubeflowModelRegistry"
Tracker = Literal["MLflow", "KubeflowModelRegistry"]
Name = Annotated[str, Field(min_length=1, max_length=256)]


class _Server(Value):
    """A server of an administrator may have any address. Variables that begin with `credentials_prefix` sign in there."""

    uri: Annotated[str, Field(min_length=1, max_length=512, pattern=ADDRESS)]
    credentials_prefix: str | None = None
    any_address: bool = False


class MlflowTracker(_Server):
    """An MLflow tracking server. Without `registered_model`, no version of a model is registered."""

    experiment: Name
    registered_model: Name | None = None


class ModelRegistry(_Server):
    """A Kubeflow model registry."""

    registered_model: Name


class Tracking(Value):
    """The trackers of a run."""

    mlflow: MlflowTracker | None = None
    model_registry: ModelRegistry | None = None


class TrackingResult(Part):
    """What one tracker has of the run. `message` says what failed, or what the tracker did not take.

    `run` is the tracker's id of the run, and `model` its name and version of the model.
    """

    kind: Tracker
    recorded: bool
    run: str | None = None
    model: str | None = None
    message: str | None = None
