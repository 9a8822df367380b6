"""The record of a run in MLflow: a small server for each change, and the real one for a release."""

from __future__ import annotations

import base64
import contextlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from finetune_trainer.errors import StageError
from finetune_trainer.tracking.mlflow import record_in_mlflow
from finetune_trainer.tracking.record import make_record

from tests.support.servers.loopback import status
from tests.support.servers.mlflow import SmallMlflow, call, real_mlflow, small_mlflow
from tests.support.tracking import UID, mlflow_client, mlflow_tracker, record, report, report_files


@pytest.fixture(scope="module", params=["small", pytest.param("real", marks=pytest.mark.full)])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a server for all tests of both; each test has an experiment of its own."""
    opened = small_mlflow() if request.param == "small" else real_mlflow(tmp_path_factory.mktemp("mlflow"))
    with opened as address:
        yield address


def runs_of(address: str, experiment: str) -> list[dict]:  # type: ignore[type-arg]
    """Return the runs of this FineTuneJob as another client finds them."""
    found = call(address, f"experiments/get-by-name?experiment_name={experiment}")["experiment"][
        "experiment_id"
    ]
    query = {"experiment_ids": [found], "filter": f"tags.`finetune.uid` = '{UID}'", "max_results": 100}
    return list(call(address, "runs/search", query).get("runs", ()))


def test_a_failed_job_has_a_failed_run_with_the_curve_until_then(server: str, tmp_path: Path) -> None:
    failure = {"stage": "Train", "reason": "NonFiniteLoss", "message": "the loss of step 3 is not finite"}
    unfinished = {**report(3), "state": "Failed", "failure": failure, "merge": None, "evaluation": None}
    given = make_record(unfinished, UID)
    tracker = mlflow_tracker(server, experiment="failed", registered_model="bot")
    with mlflow_client(tracker) as client:
        found = record_in_mlflow(client, tracker, given, report_files(tmp_path))
        again = record_in_mlflow(client, tracker, given, report_files(tmp_path))
    assert (found.recorded, found.model, again.run) == (True, None, found.run)
    [run] = runs_of(server, "failed")
    assert run["info"]["status"] == "FAILED"
    tags = {each["key"]: each["value"] for each in run["data"]["tags"]}
    assert (tags["finetune.failure.reason"], tags["finetune.state"]) == ("NonFiniteLoss", "Failed")
    history = call(server, f"metrics/get-history?run_id={found.run}&metric_key=loss&max_results=9")["metrics"]
    assert [each["step"] for each in history] == [1, 2, 3]


def test_the_run_has_parameters_metrics_by_step_report_and_model(server: str, tmp_path: Path) -> None:
    tracker = mlflow_tracker(server, experiment="whole", registered_model="support bot")
    with mlflow_client(tracker) as client:
        found = record_in_mlflow(client, tracker, record(), report_files(tmp_path))
    assert (found.recorded, found.model, found.message) == (True, "support bot/1", None)
    [run] = runs_of(server, "whole")
    assert run["info"]["run_id"] == found.run
    assert (run["info"]["run_name"], run["info"]["status"]) == ("bot", "FINISHED")
    assert (run["info"]["start_time"], run["info"]["end_time"]) == (record().started, record().ended)
    params = {each["key"]: each["value"] for each in run["data"]["params"]}
    assert params == record().parameters
    history = call(server, f"metrics/get-history?run_id={found.run}&metric_key=loss&max_results=1000")[
        "metrics"
    ]
    assert [(each["step"], each["value"]) for each in history] == [
        (each.step, each.value) for each in record().metrics if each.key == "loss"
    ]
    [version] = call(server, "model-versions/search?filter=name%3D'support%20bot'")["model_versions"]
    model = record().model
    assert model is not None
    assert (version["source"], version["run_id"]) == (model.uri, found.run)
    tags = {each["key"]: each["value"] for each in version["tags"]}
    assert tags["finetune.artifact.merged.digest"] == model.digest


def test_a_record_that_is_sent_again_changes_nothing(server: str, tmp_path: Path) -> None:
    tracker = mlflow_tracker(server, experiment="again", registered_model="again")
    files = report_files(tmp_path)
    results = []
    for _ in range(3):
        with mlflow_client(tracker) as client:
            results.append(record_in_mlflow(client, tracker, record(20), files))
    assert results[1:] == [results[0]] * 2
    assert len(runs_of(server, "again")) == 1
    history = call(server, f"metrics/get-history?run_id={results[0].run}&metric_key=loss")["metrics"]
    assert len(history) == 20
    assert len(call(server, "model-versions/search?filter=name%3D'again'")["model_versions"]) == 1


def test_a_longer_record_adds_only_the_new_steps(server: str, tmp_path: Path) -> None:
    tracker = mlflow_tracker(server, experiment="longer")
    for points in (5, 9):
        with mlflow_client(tracker) as client:
            found = record_in_mlflow(client, tracker, record(points), report_files(tmp_path))
    history = call(server, f"metrics/get-history?run_id={found.run}&metric_key=loss")["metrics"]
    assert [each["step"] for each in history] == list(range(1, 10))
    [run] = runs_of(server, "longer")
    params = {each["key"]: each["value"] for each in run["data"]["params"]}
    assert params["training.maximumSteps"] == "5", "MLflow refuses another value, so the first one stays"


def test_a_model_that_mlflow_refuses_leaves_the_run_whole(server: str, tmp_path: Path) -> None:
    document = report(3)
    for artifact in document["merge"]["artifacts"]:
        artifact["uri"] = f"file://{tmp_path}/merged"
    tracker = mlflow_tracker(server, experiment="refused", registered_model="refused")
    with mlflow_client(tracker) as client:
        found = record_in_mlflow(client, tracker, make_record(document, UID), {})
    assert not found.recorded
    assert (found.message or "").startswith("the run has no model version: could not send the run to MLflow")
    [run] = runs_of(server, "refused")
    assert (run["info"]["run_id"], run["info"]["status"]) == (found.run, "FINISHED")


def test_a_model_that_exists_needs_no_permission_to_make_one() -> None:
    state, _ = failing("registered-models/create", 10**6, status(403))
    state.models["bot"] = []
    with small_mlflow(state) as address:
        tracker = mlflow_tracker(address, registered_model="bot")
        with mlflow_client(tracker) as client:
            assert record_in_mlflow(client, tracker, record(1), {}).model == "bot/1"


def test_a_name_that_mlflow_refuses_is_said_with_its_words() -> None:
    body = b'{"error_code": "INVALID_PARAMETER_VALUE", "message": "Invalid experiment name"}'
    state, _ = failing("experiments/create", 10**6, status(400, body))
    with small_mlflow(state) as address:
        tracker = mlflow_tracker(address)
        with (
            mlflow_client(tracker) as client,
            pytest.raises(StageError, match="400 \\(Invalid experiment name"),
        ):
            record_in_mlflow(client, tracker, record(1), {})


def test_jobs_that_make_one_experiment_at_the_same_time_share_it(server: str) -> None:
    tracker = mlflow_tracker(server, experiment="shared")
    failures: list[StageError] = []

    def send(number: int) -> None:
        try:
            with mlflow_client(tracker) as client:
                record_in_mlflow(client, tracker, record(2, f"{UID}-{number}"), {})
        except StageError as error:
            failures.append(error)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    found = call(server, "experiments/get-by-name?experiment_name=shared")["experiment"]["experiment_id"]
    assert len(call(server, "runs/search", {"experiment_ids": [found], "max_results": 9})["runs"]) == 4


def failing(
    where: str, times: int, answer: Callable[[BaseHTTPRequestHandler], None]
) -> tuple[SmallMlflow, list[int]]:
    """Return a server that fails the first requests whose path has `where`, and how often it did."""
    state, count = SmallMlflow(), [0]

    def interfere(handler: BaseHTTPRequestHandler) -> bool:
        if where not in handler.path or count[0] >= times:
            return False
        count[0] += 1
        answer(handler)
        return True

    state.interfere = interfere
    return state, count


STEPS = ("experiments/get-by-name", "experiments/create", "runs/search", "runs/create", "log-batch", "artifacts/",
         "registered-models/get", "registered-models/create", "model-versions/search", "model-versions/create",
         "runs/update")  # fmt: skip


@pytest.mark.parametrize("where", STEPS)
def test_an_outage_at_any_step_leaves_one_run_and_no_value_twice(where: str, tmp_path: Path) -> None:
    state, count = failing(where, 2, status(503))
    with small_mlflow(state) as address:
        tracker = mlflow_tracker(address, registered_model="bot")
        with mlflow_client(tracker) as client:
            found = record_in_mlflow(client, tracker, record(600), report_files(tmp_path))
    assert count == [2]
    assert found.recorded
    [run] = state.runs.values()
    steps = [step for key, step, _, _ in run.metrics if key == "loss"]
    assert sorted(steps) == list(range(1, 601))
    assert run.status == "FINISHED"
    assert [len(versions) for versions in state.models.values()] == [1]
    assert {name.rpartition("/")[2] for name in state.files} == {"job.json", "index.html"}


def test_an_answer_that_is_lost_after_the_run_was_made_leaves_one_run() -> None:
    state = SmallMlflow()
    lost = [0]

    def lose(handler: BaseHTTPRequestHandler) -> bool:
        if "runs/create" in handler.path and not lost[0]:
            lost[0] = 1
            state._runs_create({"experiment_id": "1", "run_name": "bot", "start_time": 0,
                                "tags": [{"key": "finetune.uid", "value": UID}]})  # fmt: skip
            handler.close_connection = True
            return True
        return False

    state.interfere = lose
    with small_mlflow(state) as address:
        tracker = mlflow_tracker(address)
        with mlflow_client(tracker) as client:
            assert record_in_mlflow(client, tracker, record(2), {}).recorded
    assert lost == [1]
    assert len(state.runs) == 1


def test_a_store_that_mlflow_does_not_proxy_is_said_and_fails_nothing(tmp_path: Path) -> None:
    state = SmallMlflow(proxied=False)
    with small_mlflow(state) as address:
        tracker = mlflow_tracker(address)
        with mlflow_client(tracker) as client:
            found = record_in_mlflow(client, tracker, record(2), report_files(tmp_path))
    assert found.recorded
    assert found.message is not None
    assert found.message.startswith("MLflow keeps artifacts in s3 and not behind its own server")
    assert state.files == {}


@pytest.mark.parametrize(
    ("secret", "header"),
    [
        ({"TOKEN": "abc\n"}, "Bearer abc"),
        (
            {"USERNAME": "anna", "PASSWORD": "pass word"},
            "Basic " + base64.b64encode(b"anna:pass word").decode(),
        ),
    ],
)
def test_credentials_come_from_the_secret(secret: dict[str, str], header: str) -> None:
    state = SmallMlflow()
    with small_mlflow(state) as address:
        tracker = mlflow_tracker(address, credentials_prefix="FINETUNE_MLFLOW_")
        environment = {f"FINETUNE_MLFLOW_MLFLOW_TRACKING_{key}": value for key, value in secret.items()}
        with mlflow_client(tracker, environment) as client:
            record_in_mlflow(client, tracker, record(1), {})
    assert state.authorizations == {header}


@pytest.mark.parametrize(
    ("code", "body", "text"),
    [
        (401, b"", "the credentials for tracking (MLflow) must allow writing"),
        (403, b"", "the credentials for tracking (MLflow) must allow writing"),
        (302, b"", "HTTP status 302"),
        (400, b'{"message": "no such  thing"}', "HTTP status 400 (no such thing)"),
        (503, b"", "HTTP status 503"),
        (200, b"<html>sign in</html>", "a response that does not follow the tracker's API"),
        (200, b"[]", "a response that does not follow the tracker's API"),
    ],
)
def test_a_server_that_refuses_is_named(code: int, body: bytes, text: str) -> None:
    state, _ = failing("/api/", 10**6, status(code, body, Location="http://127.0.0.1:1/"))
    with small_mlflow(state) as address:
        tracker = mlflow_tracker(address)
        with mlflow_client(tracker) as client, pytest.raises(StageError) as caught:
            record_in_mlflow(client, tracker, record(1), {})
    assert text in caught.value.message


def test_a_server_that_is_slow_is_left_at_the_deadline() -> None:
    ends = threading.Event()

    def hang(_handler: BaseHTTPRequestHandler) -> None:
        ends.wait(30)

    state, _ = failing("/api/", 10**6, hang)
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(small_mlflow(state))
        stack.callback(ends.set)
        tracker = mlflow_tracker(address)
        with mlflow_client(tracker, deadline_seconds=0.5) as client, pytest.raises(StageError) as caught:
            record_in_mlflow(client, tracker, record(1), {})
    assert "could not send the run to MLflow" in caught.value.message
