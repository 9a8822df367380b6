from __future__ import annotations

import json
from typing import Any

import pytest
from finetune_cli.cluster.client import Client, condition, has_ended, manifest
from finetune_cli.cluster.kubectl import ApiUnavailableError, ExistsError, NotFoundError
from finetune_client.types import FineTuneJobSpec

from tests.support.cli_jobs import cli_job, failed, succeeded, training
from tests.support.kubectl_program import KubectlProgram

SPEC: FineTuneJobSpec = {
    "model": {"source": {"huggingFace": {"repository": "org/base"}}},
    "dataset": {"source": {"configMap": {"name": "rows", "key": "rows.jsonl"}}},
    "output": {"destination": {"persistentVolumeClaim": {"claimName": "models"}}},
    "training": {"epochs": 1, "lora": {"rank": 8}},
}


class Clock:
    """A clock that sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def kubectl(cluster: KubectlProgram) -> KubectlProgram:
    """A kubectl that keeps FineTuneJobs."""
    return cluster


@pytest.fixture
def client(kubectl: KubectlProgram) -> Client:
    assert kubectl.calls == []
    clock = Clock()
    return Client(sleep=clock.sleep, clock=clock)


def test_a_manifest_is_created_or_only_checked(kubectl: KubectlProgram, client: Client) -> None:
    job = client.create(manifest("bot", SPEC, {"team": "search"}))
    assert job["metadata"] == {"name": "bot", "labels": {"team": "search"}}
    assert json.loads(kubectl.calls[0]["stdin"]) == job
    assert "--dry-run=server" not in kubectl.calls[0]["arguments"]
    client.create(job, dry_run=True)
    assert "--dry-run=server" in kubectl.calls[1]["arguments"]


def test_an_existing_job_is_not_changed(kubectl: KubectlProgram, client: Client) -> None:
    kubectl.fail("Error from server (AlreadyExists): exists")
    with pytest.raises(ExistsError):
        client.create(manifest("bot", SPEC))


def test_the_time_limit_names_the_job(kubectl: KubectlProgram, client: Client) -> None:
    kubectl.put(training())
    with pytest.raises(TimeoutError, match="support-bot must end within 10 s"):
        list(client.follow("support-bot", timeout=10))


def test_outages_are_outlived_and_reported(kubectl: KubectlProgram, client: Client) -> None:
    kubectl.put(training(), succeeded())
    kubectl.fail("Unable to connect to the server: EOF", "Error from server (ServiceUnavailable): no")
    outages: list[ApiUnavailableError] = []
    assert len(list(client.follow("support-bot", on_outage=outages.append))) == 2
    assert len(outages) == 2


def test_an_outage_does_not_extend_the_time_limit(kubectl: KubectlProgram, client: Client) -> None:
    kubectl.fail(*["Unable to connect to the server: EOF"] * 20)
    with pytest.raises(TimeoutError):
        list(client.follow("support-bot", timeout=10))


def test_a_deleted_job_ends_the_wait(kubectl: KubectlProgram, client: Client) -> None:
    kubectl.put(training())
    jobs = client.follow("support-bot")
    next(jobs)
    kubectl.fail('Error from server (NotFound): finetunejobs.finetune.dev "support-bot" not found')
    with pytest.raises(NotFoundError):
        next(jobs)


def test_another_job_of_the_same_name_is_not_the_followed_one(
    kubectl: KubectlProgram, client: Client
) -> None:
    other = succeeded()
    other["metadata"]["uid"] = "another"
    kubectl.put(training(), other)
    with pytest.raises(NotFoundError, match="was deleted, and another one has its name"):
        list(client.follow("support-bot"))


def test_lists_and_changes_are_those_of_the_cluster(kubectl: KubectlProgram, client: Client) -> None:
    kubectl.put(training())
    assert [job["metadata"]["name"] for job in client.list("team=a", all_namespaces=True)] == ["support-bot"]
    assert client.suspend("support-bot")["spec"]["suspend"] is True
    assert client.suspend("support-bot", suspended=False)["spec"]["suspend"] is False


@pytest.mark.parametrize(
    ("job", "ended"),
    [
        (cli_job(), False),
        (training(), False),
        (succeeded(), True),
        (failed(), True),
        ({"metadata": {}}, False),
    ],
)
def test_a_job_has_ended_if_its_condition_says_so(job: dict[str, Any], *, ended: bool) -> None:
    assert has_ended(job) is ended


def test_an_absent_condition_is_empty() -> None:
    assert condition(cli_job(), "Stalled") == {}
