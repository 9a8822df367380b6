"""What the commands ask of the cluster, through kubectl with the user's own rights."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_client.kubectl import Kubectl
from finetune_operator.api.stages import JOB_LABEL, PLURAL

from finetune_cli.errors import UsageError
from finetune_cli.kubectl import kubectl_get

_REMEDY = "check the name, --namespace and --context"
_POLL_SECONDS = 0.5
_LIMIT_BYTES = 16 << 20
"""More than the pod prints."""


@dataclass(frozen=True)
class Cluster:
    """One namespace of one context; None stands for kubectl's own choice."""

    context: str | None = None
    namespace: str | None = None
    kubeconfig: str | None = None

    @property
    def kubectl(self) -> Kubectl:
        """kubectl with these options."""
        return Kubectl(self.namespace, self.context, self.kubeconfig)

    def job(self, name: str) -> dict[str, Any]:
        """The FineTuneJob. Raises ClusterError, so that a missing job has the exit code of every command."""
        found: dict[str, Any] = self.kubectl.json("get", f"{PLURAL}.finetune.dev", name)
        return found

    def pods(self, job: str) -> list[dict[str, Any]]:
        """The pods of a job's stages. Raises UsageError."""
        found: list[dict[str, Any]] = self._get("pods", "-l", f"{JOB_LABEL}={job}")["items"]
        return found

    def claims(self, names: Sequence[str]) -> set[str]:
        """Those of the names that are claims and stay. Raises UsageError."""
        wanted = list(dict.fromkeys(names))
        found = self._get("persistentvolumeclaims", *wanted, "--ignore-not-found") if wanted else None
        items = [] if not found else found.get("items", [found])
        return {item["metadata"]["name"] for item in items if "deletionTimestamp" not in item["metadata"]}

    def lines(self, pod: str, container: str, *, follow: bool) -> Iterator[bytes]:
        """The lines of a container's log as they come. Raises UsageError if kubectl cannot read it."""
        command = self.kubectl.command("logs", pod, "-c", container, *(["--follow"] if follow else []))
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            if process.stdout is None or process.stderr is None:
                raise UsageError("kubectl must have pipes")
            try:
                yield from process.stdout
                error = process.stderr.read()
            finally:
                process.terminate()
        if process.returncode > 0:
            raise UsageError(_failure(command, error))

    def run_reader(self, pod: Mapping[str, Any], seconds: int) -> bytes:
        """Create a pod, wait for its end, and return its log; the pod is deleted in any case. Raises UsageError."""
        namespace = pod["metadata"]["namespace"]
        inside = Cluster(self.context, namespace, self.kubeconfig)
        created = json.loads(inside._call("create", "-f", "-", "-o", "json", given=json.dumps(pod).encode()))
        name = created["metadata"]["name"]
        try:
            end = time.monotonic() + seconds
            while True:
                found = inside._get("pods", name)
                phase = (found.get("status") or {}).get("phase")
                if phase in {"Succeeded", "Failed"}:
                    return inside._call("logs", name, f"--limit-bytes={_LIMIT_BYTES}")
                if time.monotonic() >= end:
                    raise UsageError(
                        f"pod {namespace}/{name}, which reads the claim, must end within {seconds} s, found: "
                        f"{why_waiting(found)}; free the claim or raise --timeout"
                    )
                time.sleep(_POLL_SECONDS)
        finally:
            inside._call("delete", "pod", name, "--wait=false", "--ignore-not-found")

    def _get(self, *arguments: str) -> Any:
        if arguments[-1] != "--ignore-not-found":
            return kubectl_get(arguments, self.kubectl, _REMEDY)
        text = self._call("get", *arguments, "-o", "json")
        return json.loads(text) if text.strip() else None

    def _call(self, *arguments: str, given: bytes = b"") -> bytes:
        command = self.kubectl.command(*arguments)
        try:
            done = subprocess.run(command, input=given, capture_output=True, check=False, timeout=60)
        except OSError as error:
            raise UsageError(f"kubectl must be on PATH: {error.strerror}") from error
        except subprocess.TimeoutExpired as error:
            raise UsageError(f"{' '.join(command)} must respond within 60 s, but did not") from error
        if done.returncode != 0:
            raise UsageError(_failure(command, done.stderr))
        return done.stdout


def why_waiting(pod: Mapping[str, Any]) -> str:
    """Why a pod does not run, in the words of scheduler and kubelet."""
    status = pod.get("status") or {}
    for container in status.get("containerStatuses") or ():
        waiting = (container.get("state") or {}).get("waiting")
        if waiting and waiting.get("reason") not in {None, "ContainerCreating", "PodInitializing"}:
            return f"{waiting['reason']}: {waiting.get('message', '')}".rstrip(": ")
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return str(condition.get("message") or condition.get("reason"))
    return f"phase {status.get('phase', 'Pending')}; its Events may say more"


def _failure(command: Sequence[str], error: bytes) -> str:
    lines = error.decode("utf-8", "replace").strip().splitlines()
    return f"{' '.join(command)} failed: {lines[-1] if lines else 'it printed no error'}"
