from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from weakref import ref

import finetune_client.client as module
import pytest
from finetune_client import ArtifactError, Client, JobFailedError
from finetune_client.client import artifact_digest
from finetune_client.types import FineTuneJobSpec
from finetune_trainer.workspace.digests import digest_of_files, file_digest
from kubernetes.client import ApiException

from tests.support.cli_jobs import cli_job, failed, succeeded, training
from tests.support.jobs_server import JobsServer, serving_jobs
from tests.support.repository import ROOT

SPEC: FineTuneJobSpec = {
    "model": {"source": {"huggingFace": {"repository": "org/base"}}},
    "dataset": {"source": {"configMap": {"name": "rows", "key": "rows.jsonl"}}},
    "output": {"destination": {"persistentVolumeClaim": {"claimName": "models"}}},
    "training": {"epochs": 1, "lora": {"rank": 8}},
}
URI = "pvc://team-a/models/support-bot/merged"


@pytest.fixture
def server() -> JobsServer:
    return JobsServer()


@pytest.fixture
def client(server: JobsServer) -> Iterator[Client]:
    with serving_jobs(server) as api:
        yield Client("team-a", api, poll_seconds=0.01)


def test_a_spec_is_submitted_as_a_manifest(server: JobsServer, client: Client) -> None:
    job = client.submit("bot", SPEC, labels={"team": "search"})
    assert job == {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "bot", "labels": {"team": "search"}},
        "spec": SPEC,
    }
    client.submit("bot", SPEC, dry_run=True)
    asked = [(method, path, query.get("dryRun")) for method, path, query, _ in server.requests]
    path = "/apis/finetune.dev/v1alpha1/namespaces/team-a/finetunejobs"
    assert asked == [("POST", path, None), ("POST", path, "All")]
    # Else a misspelled field would be dropped in silence.
    assert server.requests[0][2]["fieldValidation"] == "Strict"


def test_a_refusal_is_raised_as_the_librarys_error(server: JobsServer, client: Client) -> None:
    server.failures.append(409)
    with pytest.raises(ApiException) as raised:
        client.submit("bot", SPEC)
    assert raised.value.status == 409


def test_waiting_returns_the_succeeded_job(server: JobsServer, client: Client) -> None:
    server.put(training(), succeeded())
    assert client.wait("support-bot")["status"]["phase"] == "Succeeded"


def test_waiting_for_a_failed_job_raises_its_reason(server: JobsServer, client: Client) -> None:
    server.put(training(), failed())
    with pytest.raises(JobFailedError, match="TooManyRowsRejected: at most 1 %") as raised:
        client.wait("support-bot")
    assert raised.value.reason == "TooManyRowsRejected"


def test_waiting_keeps_only_the_last_state(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    class State(dict[str, Any]):
        """A dictionary that can have weak references."""

    def follow(*_: Any) -> Iterator[Any]:
        seen = []
        for _number in range(5):
            seen.append(ref(state := State(succeeded())))
            yield state
            assert sum(known() is not None for known in seen) <= 2

    monkeypatch.setattr(client, "follow", follow)
    assert client.wait("support-bot")["status"]["phase"] == "Succeeded"


def test_progress_is_yielded_once_for_each_change(server: JobsServer, client: Client) -> None:
    server.put(cli_job(), training(step=1), training(step=1), training(step=2), succeeded())
    assert [progress["step"] for progress in client.progress("support-bot")] == [1, 2]


def test_a_job_is_followed_through_its_changes(server: JobsServer, client: Client) -> None:
    server.put(cli_job(), training(), succeeded())
    phases = [job.get("status", {}).get("phase") for job in client.follow("support-bot")]
    assert phases == [cli_job().get("status", {}).get("phase"), "Training", "Succeeded"]


def test_the_time_limit_names_the_job(server: JobsServer, client: Client) -> None:
    server.put(training())
    with pytest.raises(TimeoutError, match="support-bot must end within 0 s"):
        client.wait("support-bot", timeout=0)


@pytest.mark.parametrize("outage", [None, 429, 500, 502, 503, 504])
def test_outages_are_outlived(server: JobsServer, client: Client, outage: int | None) -> None:
    server.put(training(), succeeded())
    server.failures.extend([outage, outage])
    assert len(list(client.follow("support-bot"))) == 2
    assert not server.failures


def test_an_outage_does_not_extend_the_time_limit(server: JobsServer, client: Client) -> None:
    server.failures.extend([None] * 20)
    with pytest.raises(TimeoutError):
        client.wait("support-bot", timeout=0)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refused_look_ends_the_wait(server: JobsServer, client: Client, status: int) -> None:
    server.put(training())
    jobs = client.follow("support-bot")
    next(jobs)
    server.failures.append(status)
    with pytest.raises(ApiException):
        next(jobs)


def test_another_job_of_the_same_name_is_not_the_followed_one(server: JobsServer, client: Client) -> None:
    other = succeeded()
    other["metadata"]["uid"] = "another"
    server.put(training(), other)
    with pytest.raises(LookupError, match="was deleted, and another one has its name"):
        client.wait("support-bot")


def test_lists_and_changes_are_those_of_the_cluster(server: JobsServer, client: Client) -> None:
    server.put(training())
    assert [job["metadata"]["name"] for job in client.list("team=a")] == ["support-bot"]
    assert server.requests[0][2]["labelSelector"] == "team=a"
    assert client.suspend("support-bot")["spec"]["suspend"] is True
    assert client.suspend("support-bot", suspended=False)["spec"]["suspend"] is False
    assert server.bodies("PATCH") == [{"spec": {"suspend": True}}, {"spec": {"suspend": False}}]


@pytest.fixture
def artifact(tmp_path: Path, server: JobsServer) -> Path:
    """A published artifact in the claim that pods see."""
    folder = tmp_path / "claim" / "support-bot" / "merged"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text("{}", "utf-8")
    (folder / "sub" / "weights.bin").write_bytes(bytes(range(256)) * 2000)
    server.root = str(tmp_path / "claim")
    return folder


def job_with(uri: str, digest: str) -> dict[str, Any]:
    job = succeeded(
        artifacts=[{"kind": "Merged", "uri": uri, "digest": digest}], trainer={"image": "registry/trainer:1"}
    )
    job["spec"]["podTemplate"] = {"imagePullSecrets": [{"name": "pull"}], "labels": {"a": "b"}}
    return job


def test_the_digest_is_that_of_the_trainer(artifact: Path) -> None:
    names = ("config.json", "sub/weights.bin")
    assert artifact_digest(artifact) == digest_of_files(
        {name: file_digest(artifact / name) for name in names}
    )


def test_an_artifact_is_copied_through_a_pod_that_only_reads(
    server: JobsServer, client: Client, artifact: Path, tmp_path: Path
) -> None:
    server.put(job_with(URI, artifact_digest(artifact)))
    folder = client.fetch("support-bot", tmp_path / "copy")
    assert (folder / "sub" / "weights.bin").read_bytes() == (artifact / "sub" / "weights.bin").read_bytes()
    (pod,) = server.bodies("POST")
    assert pod["spec"]["volumes"][0]["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}
    assert pod["spec"]["imagePullSecrets"] == [{"name": "pull"}]
    assert pod["spec"]["containers"][0]["image"] == "registry/trainer:1"
    assert pod["spec"]["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True
    assert "labels" not in pod["spec"]
    assert server.commands == [["tar", "-C", "/artifact/support-bot/merged", "-c", "."]]
    assert server.requests[-1][:2] == ("DELETE", "/api/v1/namespaces/team-a/pods/reader-1")


def test_a_changed_file_is_found(server: JobsServer, client: Client, artifact: Path, tmp_path: Path) -> None:
    assert artifact.is_dir()
    server.put(job_with(URI, "sha256:other"))
    with pytest.raises(ArtifactError, match="must have the digest sha256:other"):
        client.fetch("support-bot", tmp_path / "copy")
    assert server.requests[-1][0] == "DELETE"
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(
    "broken",
    [
        "echo 'tar: no such folder' >&2; exit 2",
        "echo nonsense",
        "dd if=/dev/zero bs=700 count=1; exit 1",
        "tar -P -c /etc/hostname",
    ],
)
def test_a_copy_that_breaks_off_leaves_nothing(
    server: JobsServer, client: Client, artifact: Path, tmp_path: Path, broken: str
) -> None:
    server.put(job_with(URI, artifact_digest(artifact)))
    server.broken = broken
    with pytest.raises(ArtifactError, match=r"no such folder|must send support-bot/merged|must have"):
        client.fetch("support-bot", tmp_path / "copy")
    assert server.requests[-1][0] == "DELETE"
    assert not (tmp_path / "copy").exists()


def test_a_pod_that_does_not_start_in_time_is_deleted_and_explained(
    server: JobsServer, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_START_SECONDS", 0)
    state = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
    container = {
        "name": "reader",
        "ready": False,
        "restartCount": 0,
        "image": "",
        "imageID": "",
        "state": state,
    }
    server.pod = {"phase": "Pending", "containerStatuses": [container]}
    server.put(job_with(URI, "sha256:a"))
    with pytest.raises(TimeoutError, match=r"must start within 0 s, found: .*ImagePullBackOff"):
        client.fetch("support-bot", tmp_path / "copy")
    assert server.requests[-1][0] == "DELETE"
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(
    ("uri", "kind", "message"),
    [
        ("s3://bucket/bot/merged", "Merged", "must be in a claim, found s3://bucket/bot/merged"),
        (URI, "Adapter", "must have published Adapter, found Merged"),
    ],
)
def test_an_artifact_that_no_pod_can_read_is_named(
    server: JobsServer, client: Client, tmp_path: Path, uri: str, kind: str, message: str
) -> None:
    server.put(job_with(uri, "sha256:a"))
    with pytest.raises(ArtifactError, match=message):
        client.fetch("support-bot", tmp_path / "copy", kind)
    assert not (tmp_path / "copy").exists()


def test_a_job_without_artifacts_says_so(server: JobsServer, client: Client, tmp_path: Path) -> None:
    server.put(training())
    with pytest.raises(ArtifactError, match="found none"):
        client.fetch("support-bot", tmp_path / "copy")


def test_an_existing_folder_is_not_touched(
    server: JobsServer, client: Client, artifact: Path, tmp_path: Path
) -> None:
    server.put(job_with(URI, artifact_digest(artifact)))
    with pytest.raises(FileExistsError):
        client.fetch("support-bot", artifact)
    assert (artifact / "config.json").is_file()
    assert tmp_path.is_dir()
    assert server.bodies("POST") == []


def test_without_a_connection_the_kubeconfig_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[bool] = []
    monkeypatch.setattr("kubernetes.config.load_config", lambda: loaded.append(True))
    Client("team-a")
    assert loaded == [True]


def test_the_client_has_at_most_two_hundred_lines() -> None:
    folder = ROOT / "cli" / "src" / "finetune_client"
    written = [path for path in folder.glob("*.py") if path.name != "types.py"]
    assert sum(len(path.read_text("utf-8").splitlines()) for path in written) <= 200


def test_the_example_of_the_documentation_runs(
    server: JobsServer, client: Client, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "docs" / "client.md").read_text("utf-8")
    example = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[0]
    server.put(training(), training(step=27, loss="0.9"), succeeded())
    monkeypatch.setattr(
        "finetune_client.Client", partial(Client, api=client._core.api_client, poll_seconds=0)
    )
    exec(compile(example, "docs/client.md", "exec"), {})  # noqa: S102 -- the documented example itself
    assert capsys.readouterr().out.splitlines() == ["Training 40% 1.2345", "Training 60% 0.9", "Improved"]
    assert server.bodies("POST")[0]["metadata"]["name"] == "support-bot"
