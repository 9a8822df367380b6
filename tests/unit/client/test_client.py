from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from typing import Any
from weakref import ref

import pytest
from finetune_client import ApiUnavailableError, Client, ExistsError, JobFailedError, NotFoundError
from finetune_client.client import condition, has_ended, manifest
from finetune_client.types import FineTuneJobSpec

from tests.support.cli_jobs import cli_job, failed, succeeded, training
from tests.support.kubectl_program import KubectlProgram
from tests.support.repository import ROOT

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
def client(kubectl: KubectlProgram) -> Client:
    assert kubectl.calls == []
    clock = Clock()
    return Client(sleep=clock.sleep, clock=clock)


def test_a_spec_is_submitted_as_a_manifest(kubectl: KubectlProgram, client: Client) -> None:
    job = client.submit("bot", SPEC, {"team": "search"})
    assert job["metadata"] == {"name": "bot", "labels": {"team": "search"}}
    assert json.loads(kubectl.calls[0]["stdin"]) == manifest("bot", SPEC, {"team": "search"})
    assert "--dry-run=server" not in kubectl.calls[0]["arguments"]
    client.submit("bot", SPEC, dry_run=True)
    assert "--dry-run=server" in kubectl.calls[1]["arguments"]


def test_an_existing_job_is_not_changed(kubectl: KubectlProgram, client: Client) -> None:
    kubectl.fail("Error from server (AlreadyExists): exists")
    with pytest.raises(ExistsError):
        client.submit("bot", SPEC)


def test_waiting_returns_the_succeeded_job(kubectl: KubectlProgram, client: Client) -> None:
    kubectl.put(training(), succeeded())
    assert client.wait("support-bot")["status"]["phase"] == "Succeeded"


def test_waiting_for_a_failed_job_raises_its_reason(kubectl: KubectlProgram, client: Client) -> None:
    kubectl.put(training(), failed())
    with pytest.raises(JobFailedError, match="TooManyRowsRejected: at most 1 %") as raised:
        client.wait("support-bot")
    assert raised.value.reason == "TooManyRowsRejected"


def test_waiting_keeps_only_the_last_state() -> None:
    class State(dict[str, Any]):
        """A dictionary that can have weak references."""

    class Follower(Client):
        def follow(self, *_names: str, **_options: Any) -> Iterator[Any]:
            seen = []
            for _ in range(5):
                seen.append(ref(state := State(succeeded())))
                yield state
                assert sum(known() is not None for known in seen) <= 2

    assert Follower().wait("support-bot")["status"]["phase"] == "Succeeded"


def test_progress_is_yielded_once_for_each_change(kubectl: KubectlProgram, client: Client) -> None:
    kubectl.put(cli_job(), training(step=1), training(step=1), training(step=2), succeeded())
    assert [progress["step"] for progress in client.progress("support-bot")] == [1, 2]


def test_the_time_limit_names_the_job(kubectl: KubectlProgram, client: Client) -> None:
    kubectl.put(training())
    with pytest.raises(TimeoutError, match="support-bot must end within 10 s"):
        client.wait("support-bot", timeout=10)


def test_outages_are_outlived_and_reported(kubectl: KubectlProgram, client: Client) -> None:
    kubectl.put(training(), succeeded())
    kubectl.fail("Unable to connect to the server: EOF", "Error from server (ServiceUnavailable): no")
    outages: list[ApiUnavailableError] = []
    assert len(list(client.follow("support-bot", on_outage=outages.append))) == 2
    assert len(outages) == 2


def test_an_outage_does_not_extend_the_time_limit(kubectl: KubectlProgram, client: Client) -> None:
    kubectl.fail(*["Unable to connect to the server: EOF"] * 20)
    with pytest.raises(TimeoutError):
        client.wait("support-bot", timeout=10)


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
        client.wait("support-bot")


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


def test_the_example_of_the_documentation_runs(
    kubectl: KubectlProgram, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "docs" / "client.md").read_text("utf-8")
    example = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[0]
    kubectl.put(training(), training(step=27, loss="0.9"), succeeded())
    monkeypatch.setattr("finetune_client.Client", partial(Client, sleep=lambda _seconds: None))
    exec(compile(example, "docs/client.md", "exec"), {})  # noqa: S102 -- the documented example itself
    assert capsys.readouterr().out.splitlines() == ["Training 40% 1.2345", "Training 60% 0.9", "Improved"]
    assert json.loads(kubectl.calls[0]["stdin"])["metadata"]["name"] == "support-bot"
