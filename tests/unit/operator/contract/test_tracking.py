"""The trackers of a run: whose they are, and what the trainer is told of them."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_operator.api.tracking import Tracking
from finetune_operator.contract.credentials import SecretPrefix
from finetune_operator.contract.identity import JobIdentity
from finetune_operator.contract.tracking import (
    choose_trackers,
    tracking_document,
    tracking_secret_prefixes,
)
from pydantic import ValidationError

JOB = JobIdentity("team-a", "bot", "uid")
SHARED = Tracking.model_validate(
    {"mlflow": {"uri": "http://mlflow.ml:5000"}, "modelRegistry": {"uri": "http://registry.ml:8080"}}
)
OWN = {
    "mlflow": {
        "uri": "https://mlflow.example.com/team",
        "experiment": "bots",
        "registeredModel": "bot",
        "secretRef": {"name": "mlflow-login"},
    }
}


def test_the_trackers_of_the_administrator_hold_for_a_job_without_its_own() -> None:
    assert tracking_document(choose_trackers(None, SHARED), JOB) == {
        "mlflow": {"uri": "http://mlflow.ml:5000", "experiment": "team-a", "anyAddress": True},
        "modelRegistry": {
            "uri": "http://registry.ml:8080",
            "registeredModel": "team-a",
            "anyAddress": True,
        },
    }


def test_a_job_replaces_all_trackers_and_its_own_must_have_public_addresses() -> None:
    trackers = choose_trackers(Tracking.model_validate(OWN), SHARED)
    assert tracking_document(trackers, JOB) == {
        "mlflow": {
            "uri": "https://mlflow.example.com/team",
            "experiment": "bots",
            "registeredModel": "bot",
            "credentialsPrefix": "FINETUNE_MLFLOW_",
        }
    }
    assert tracking_secret_prefixes(trackers) == [SecretPrefix("FINETUNE_MLFLOW_", "mlflow-login")]


def test_an_empty_object_of_a_job_stands_for_no_tracker() -> None:
    assert not choose_trackers(Tracking(), SHARED)
    assert not choose_trackers(None, Tracking())
    assert choose_trackers(None, SHARED)


@pytest.mark.parametrize(
    "wrong",
    [
        {"uri": "https://user:password@mlflow.example.com"},
        {"uri": "https://mlflow.example.com/?token=secret"},
        {"uri": "ftp://mlflow.example.com"},
        {"uri": "https://mlflow.example.com", "registeredModel": "team/bot"},
        {"uri": "https://mlflow.example.com", "experiment": "it's"},
        {"experiment": "bots"},
    ],
)
def test_addresses_with_secrets_and_names_that_mlflow_refuses_are_invalid(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Tracking.model_validate({"mlflow": wrong})
