from __future__ import annotations

import json
from pathlib import Path

import pytest
from finetune_client.artifacts import DigestMismatchError, artifact_digest, copied_artifact
from finetune_client.kubectl import ClusterError, Kubectl
from finetune_trainer.workspace.digests import digest_of_files, file_digest

from tests.support.cli_jobs import succeeded, training

_KUBECTL = """#!/bin/sh
echo "$*" >> {log}
case "$*" in
  *" create "*) tee {manifest} > /dev/null; echo '{{"metadata": {{"name": "bot-fetch-1"}}}}' ;;
  *" get "*) echo '{{"status": {{"phase": "Running"}}}}' ;;
  *exec*) exec tar -C {artifact} -cf - . ;;
esac
"""


@pytest.fixture
def artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A published artifact, and a kubectl whose pods read it."""
    folder = tmp_path / "published"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text("{}", "utf-8")
    (folder / "sub" / "weights.bin").write_bytes(b"\0" * 100)
    program = tmp_path / "kubectl"
    program.write_text(
        _KUBECTL.format(log=tmp_path / "log", manifest=tmp_path / "pod.json", artifact=folder), "utf-8"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return folder


def job_with(uri: str, digest: str) -> dict[str, object]:
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


def test_an_artifact_is_copied_through_a_pod_that_only_reads(artifact: Path, tmp_path: Path) -> None:
    job = job_with("pvc://team-a/models/support-bot/merged", artifact_digest(artifact))
    folder = copied_artifact(Kubectl(), job, "Merged", tmp_path / "copy")
    assert (folder / "sub" / "weights.bin").read_bytes() == b"\0" * 100
    pod = json.loads((tmp_path / "pod.json").read_text("utf-8"))
    assert pod["spec"]["volumes"][0]["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}
    assert pod["spec"]["imagePullSecrets"] == [{"name": "pull"}]
    assert pod["spec"]["containers"][0]["image"] == "registry/trainer:1"
    assert pod["spec"]["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True
    log = (tmp_path / "log").read_text("utf-8").splitlines()
    assert all("--namespace=team-a" in line for line in log)
    assert "exec bot-fetch-1 --container=reader -- tar -C /artifact/support-bot/merged" in log[2]
    assert "delete pod" in log[-1]


def test_a_changed_file_is_found_and_the_pod_is_deleted(artifact: Path, tmp_path: Path) -> None:
    job = job_with("pvc://team-a/models/support-bot/merged", "sha256:other")
    with pytest.raises(DigestMismatchError, match="must have the digest sha256:other"):
        copied_artifact(Kubectl(), job, "Merged", tmp_path / "copy")
    assert "delete pod" in (tmp_path / "log").read_text("utf-8")
    assert artifact.is_dir()


@pytest.mark.parametrize("break_off", ["echo 'tar: no such folder' >&2; exit 2", "echo nonsense"])
def test_a_copy_that_breaks_off_leaves_nothing(artifact: Path, tmp_path: Path, break_off: str) -> None:
    program = tmp_path / "kubectl"
    program.write_text(program.read_text("utf-8").replace("exec tar", f"{break_off}; exec true"), "utf-8")
    job = job_with("pvc://team-a/models/support-bot/merged", artifact_digest(artifact))
    with pytest.raises(ClusterError, match=r"no such folder|must send all files of support-bot/merged"):
        copied_artifact(Kubectl(), job, "Merged", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    assert "delete pod" in (tmp_path / "log").read_text("utf-8")


@pytest.mark.parametrize(
    ("uri", "kind", "message"),
    [
        ("s3://bucket/bot/merged", "Merged", "must be in a claim, found s3://bucket/bot/merged"),
        (
            "pvc://team-a/models/bot/merged",
            "Adapter",
            "must have published the artifact Adapter, found Merged",
        ),
    ],
)
def test_an_artifact_that_no_pod_can_read_is_named(uri: str, kind: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=message):
        copied_artifact(Kubectl(), job_with(uri, "sha256:a"), kind, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_job_without_artifacts_says_so(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="found none"):
        copied_artifact(Kubectl(), training(), "Merged", tmp_path / "copy")
