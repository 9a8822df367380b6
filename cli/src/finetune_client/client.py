"""FineTuneJobs of one namespace: submit them, wait for them, follow their progress and fetch their artifacts."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import yaml
from kubernetes import client, config
from kubernetes.stream import stream
from urllib3.exceptions import HTTPError
from websocket import WebSocketException

from finetune_client.types import FineTuneJob, FineTuneJobSpec, FineTuneJobStatusProgress

_REQUEST: dict[str, Any] = {"_request_timeout": 30}
_JOBS = {"group": "finetune.dev", "version": "v1alpha1", "plural": "finetunejobs", **_REQUEST}
_KIND = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob"}
_MERGE = {"_content_type": "application/merge-patch+json"}
_EXEC = {"stdout": True, "stderr": True, "binary": True, "_preload_content": False}
_POD_FIELDS = ("serviceAccountName", "imagePullSecrets", "tolerations")
_START_SECONDS = _SILENCE_SECONDS = 300


class JobFailedError(Exception):
    """The FineTuneJob `name` failed for `reason`, one of docs/failure-modes.md."""

    def __init__(self, name: str, reason: str, message: str) -> None:
        super().__init__(f"FineTuneJob {name} failed: {reason}: {message}")
        self.name, self.reason = name, reason


class ArtifactError(Exception):
    """The artifact cannot be copied, or its files are not those that the job published."""


class Client:
    """A client of `namespace`, by the kubeconfig or, in a pod, by its service account; `api` chooses another cluster."""

    def __init__(self, namespace: str, api: client.ApiClient | None = None, poll_seconds: float = 2) -> None:
        if api is None:
            config.load_config()
        self.namespace, self.poll_seconds, self._jobs = namespace, poll_seconds, client.CustomObjectsApi(api)
        self._core: Any = client.CoreV1Api(api)

    def submit(self, name: str, spec: FineTuneJobSpec, *, dry_run: bool = False, **meta: Any) -> FineTuneJob:
        """Create a job, for example with `labels`, and return it. With `dry_run`, the API server checks it only."""
        job = {**_KIND, "metadata": {"name": name, **meta}, "spec": spec}
        return self._call("create", body=job, field_validation="Strict", dry_run="All" if dry_run else None)

    def get(self, name: str) -> FineTuneJob:
        """Return a job."""
        return self._call("get", name=name)

    def list(self, selector: str = "") -> Sequence[FineTuneJob]:
        """Return the jobs that a label selector finds, by default all."""
        return list(cast(Any, self._call("list", label_selector=selector))["items"])

    def suspend(self, name: str, *, suspended: bool = True) -> FineTuneJob:
        """Suspend a job, or resume it. A suspended job keeps its workspace and holds no GPU."""
        return self._call("patch", name=name, body={"spec": {"suspend": suspended}}, **_MERGE)

    def _call(self, verb: str, **options: Any) -> FineTuneJob:
        method = getattr(self._jobs, f"{verb}_namespaced_custom_object")
        return cast(FineTuneJob, method(namespace=self.namespace, **_JOBS, **options))

    def follow(self, name: str, timeout: float | None = None) -> Iterator[FineTuneJob]:
        """Yield a job now and after each change until its end. Raises TimeoutError, and LookupError if it is replaced."""
        end = None if timeout is None else time.monotonic() + timeout
        last: FineTuneJob | None = None
        while True:
            try:
                job = self.get(name)
            except (HTTPError, client.ApiException) as error:
                if getattr(error, "status", 503) not in {429, 500, 502, 503, 504}:
                    raise  # an outage of the API server only delays this
            else:
                if last and last["metadata"]["uid"] != job["metadata"]["uid"]:
                    raise LookupError(f"FineTuneJob {name} was deleted, and another one has its name now")
                if job != last:
                    yield job
                if _succeeded(job).get("status") in {"True", "False"}:
                    return
                last = job
            if end is not None and time.monotonic() >= end:
                raise TimeoutError(f"FineTuneJob {name} must end within {timeout:g} s, but did not")
            time.sleep(self.poll_seconds)

    def progress(self, name: str, timeout: float | None = None) -> Iterator[FineTuneJobStatusProgress]:
        """Yield each new progress of a job until it ends. Raises what `follow` raises."""
        last: FineTuneJobStatusProgress = {}
        for job in self.follow(name, timeout):
            progress = job.get("status", {}).get("progress", last)
            if progress != last:
                yield progress
            last = progress

    def wait(self, name: str, timeout: float | None = None) -> FineTuneJob:
        """Return the job when it has succeeded. Raises JobFailedError, and what `follow` raises."""
        for job in self.follow(name, timeout):
            ended = _succeeded(job)
        if ended["status"] != "True":
            raise JobFailedError(name, ended.get("reason", ""), ended.get("message", ""))
        return job

    def fetch(self, name: str, folder: Path, kind: str = "Merged") -> Path:
        """Copy an artifact through a pod from its claim to a new `folder`. Raises ArtifactError and TimeoutError."""
        job = self.get(name)
        artifacts = {item["kind"]: item for item in job.get("status", {}).get("artifacts", ())}
        if kind not in artifacts:
            raise ArtifactError(f"the job must have published {kind}, found {', '.join(artifacts) or 'none'}")
        uri, digest = artifacts[kind]["uri"], artifacts[kind]["digest"]
        if not uri.startswith("pvc://"):
            raise ArtifactError(f"the artifact must be in a claim, found {uri}; use a tool of that store")
        namespace, claim, path = uri.removeprefix("pvc://").split("/", 2)
        folder.mkdir(parents=True)
        try:
            pod = self._core.create_namespaced_pod(namespace, _reader(job, claim), **_REQUEST).metadata.name
            try:
                self._unpack(namespace, pod, path, folder, digest)
            finally:
                self._core.delete_namespaced_pod(pod, namespace, **_REQUEST)
        except BaseException:
            shutil.rmtree(folder)  # a half copy must not look whole
            raise
        return folder

    def _unpack(self, namespace: str, pod: str, path: str, folder: Path, digest: str) -> None:
        end = time.monotonic() + _START_SECONDS
        while (seen := self._core.read_namespaced_pod(pod, namespace, **_REQUEST).status).phase == "Pending":
            if time.monotonic() >= end:
                why = [item.state.waiting for item in seen.container_statuses or ()] or seen.conditions
                raise TimeoutError(f"pod {pod} must start within {_START_SECONDS} s, found: {why}")
            time.sleep(self.poll_seconds)
        command = ["tar", "-C", f"/artifact/{path}", "-c", "."]
        session = stream(self._core.connect_get_namespaced_pod_exec, pod, namespace, command=command, **_EXEC)
        with session.sock.sock:  # the session's own method leaves it open after the last frame
            output: Any = _Output(session.sock)
            try:
                with tarfile.open(fileobj=output, mode="r|", bufsize=1 << 16) as archive:
                    archive.extractall(folder, filter="data")
            except (tarfile.TarError, WebSocketException) as error:
                raise ArtifactError(f"{pod} must send {path}, found: {error} {output.errors}") from error
        if (found := artifact_digest(folder)) != digest:
            raise ArtifactError(f"the files of {path} must have the digest {digest}, found {found}")


class _Output:
    """What a command in a pod prints, as a file. Channel 1 of the protocol is standard output."""

    def __init__(self, socket: Any) -> None:
        socket.settimeout(_SILENCE_SECONDS)
        self._socket, self._rest, self.errors = socket, b"", ""

    def read(self, size: int) -> bytes:
        while len(self._rest) < size and (frame := self._socket.recv()):
            self._rest += frame[1:] if frame[0] == 1 else b""
            self.errors += "" if frame[0] == 1 else frame[1:].decode("utf-8", "replace")
        part, self._rest = self._rest[:size], self._rest[size:]
        return part


def artifact_digest(folder: Path) -> str:
    """Return the digest over the sorted list of file names and file digests, as `status.artifacts` has it."""
    listed = []
    for path in filter(Path.is_file, folder.rglob("*")):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        listed.append([path.relative_to(folder).as_posix(), f"sha256:{digest}"])
    canonical = json.dumps(sorted(listed), separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


def _succeeded(job: FineTuneJob) -> Mapping[str, Any]:
    """Return the condition Succeeded, or an empty one if the job has none."""
    return next(
        (item for item in job.get("status", {}).get("conditions", ()) if item["type"] == "Succeeded"), {}
    )


def _reader(job: FineTuneJob, claim: str) -> dict[str, Any]:
    """Return the pod that reads `claim`, with the settings of the job's own pods."""
    pod: dict[str, Any] = yaml.safe_load((files("finetune_client") / "reader_pod.yaml").read_text("utf-8"))
    pod["metadata"]["generateName"] = f"{job['metadata']['name']}-fetch-"
    pod["spec"]["containers"][0]["image"] = job["status"]["trainer"]["image"]
    pod["spec"]["volumes"][0]["persistentVolumeClaim"] = {"claimName": claim, "readOnly": True}
    own: Any = job["spec"].get("podTemplate", {})
    return {**pod, "spec": pod["spec"] | {name: own[name] for name in _POD_FIELDS if name in own}}
