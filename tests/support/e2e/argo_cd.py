"""A real Argo CD beside a cluster: its controller, its repository server and Redis, as processes of this machine.

It watches one Git repository in a folder. It is built from its module by scripts/tools/build_argo_cd.sh.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from devcluster.kubectl import Kubectl

from tests.support.repository import ROOT

PROGRAM = ROOT / ".cache/bin/argo-cd"
MANIFESTS = ROOT / ".cache/bin/argo-cd.yaml"
NAMESPACE = "argocd"
APPLICATION = "finetune-jobs"
_TRACKED = {"app.kubernetes.io/part-of": "argocd"}


class Repository:
    """A Git repository whose folder `jobs` holds one file for each object."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "jobs").mkdir(parents=True)
        # Argo CD refuses a path that Git does not contain.
        (folder / "jobs" / ".keep").touch()
        self._git("init", "--quiet", "--initial-branch=main")
        self.commit({})

    @property
    def url(self) -> str:
        """The address under which Argo CD reads it."""
        return f"file://{self.folder}"

    def commit(self, files: Mapping[str, dict[str, Any] | None]) -> str:
        """Write (or, for None, remove) files, commit them, and return the revision."""
        for name, body in files.items():
            path = self.folder / "jobs" / f"{name}.yaml"
            if body is None:
                path.unlink()
            else:
                path.write_text(yaml.safe_dump(body, sort_keys=False), encoding="utf-8")
        self._git("add", "--all")
        self._git("commit", "--quiet", "--message", "Change the jobs")
        return self._git("rev-parse", "HEAD").strip()

    def _git(self, *arguments: str) -> str:
        identity = ("-c", "user.name=Tests", "-c", "user.email=tests@example.com")
        command = ["git", "-C", str(self.folder), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class ArgoCd:
    """One application of a running Argo CD."""

    def __init__(self, kubectl: Kubectl, repository: Repository) -> None:
        self._kubectl = kubectl.within(NAMESPACE)
        self.repository = repository

    def create(self, namespace: str, options: tuple[str, ...] = ("ServerSideApply=true",)) -> None:
        """Create the application: it syncs by itself, prunes and heals in `namespace`."""
        self._kubectl.apply(
            {
                "apiVersion": "argoproj.io/v1alpha1",
                "kind": "Application",
                "metadata": {"name": APPLICATION, "namespace": NAMESPACE},
                "spec": {
                    "project": "default",
                    "source": {"repoURL": self.repository.url, "targetRevision": "main", "path": "jobs"},
                    "destination": {"server": "https://kubernetes.default.svc", "namespace": namespace},
                    "syncPolicy": {
                        "automated": {"prune": True, "selfHeal": True, "allowEmpty": True},
                        "syncOptions": list(options),
                        "retry": {"limit": 0},
                    },
                },
            }
        )

    def read(self) -> dict[str, Any]:
        """The application as it is now."""
        found: dict[str, Any] = self._kubectl.json("get", "application", APPLICATION)
        return found

    def refresh(self) -> None:
        """Let Argo CD compare again, without its cache."""
        self._kubectl(
            "annotate", "application", APPLICATION, "argocd.argoproj.io/refresh=hard", "--overwrite"
        )

    def sync(self, *options: str) -> None:
        """Ask for one sync with these options."""
        operation = {"operation": {"sync": {"syncOptions": list(options), "prune": True}}}
        self._kubectl("patch", "application", APPLICATION, "--type=merge", f"--patch={json.dumps(operation)}")

    def until(
        self, what: str, holds: Callable[[dict[str, Any]], bool], *, seconds: float = 120
    ) -> dict[str, Any]:
        """Poll until `holds` is true of the application; fail with its status after `seconds`."""
        deadline = time.monotonic() + seconds
        while not holds(found := self.read()):
            if time.monotonic() > deadline:
                pytest.fail(f"{what} must be seen within {seconds:.0f} s, found {found.get('status')}")
            time.sleep(0.5)
        return found

    def until_synced(self, revision: str, health: str, *, seconds: float = 300) -> dict[str, Any]:
        """Wait until this revision is synced and the application has this health."""
        self.refresh()
        return self.until(
            f"revision {revision[:8]} synced and {health}",
            lambda found: (
                found.get("status", {}).get("sync", {}).get("status") == "Synced"
                and found["status"]["sync"].get("revision") == revision
                and found["status"].get("health", {}).get("status") == health
            ),
            seconds=seconds,
        )


def evaluate(command: str, job: dict[str, Any], folder: Path, *more: str) -> str:
    """Run the scripts of argocd-cm.yaml on `job` with Argo CD's own Lua; returns what it prints.

    `command` is `health`, `list-actions` or `run-action` of `argocd admin settings resource-overrides`.
    """
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job), encoding="utf-8")
    settings = ROOT / "gitops/argocd/argocd-cm.yaml"
    done = subprocess.run(
        [
            str(PROGRAM), "admin", "settings", "resource-overrides", command, str(path), *more,
            "--argocd-cm-path", str(settings),
        ],
        env=os.environ | {"ARGOCD_BINARY_NAME": "argocd"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def created_by(printed: str) -> dict[str, Any]:
    """The object that an action creates, from what `evaluate` printed."""
    _, _, text = printed.partition("created:")
    found: dict[str, Any] = yaml.safe_load(text)
    return found


@contextmanager
def running(kubectl: Kubectl, folder: Path) -> Iterator[ArgoCd]:
    """Run Argo CD for the duration of a `with` block; `folder` holds its files. Its objects are deleted at the end."""
    for path in (PROGRAM, MANIFESTS):
        if not path.exists():
            pytest.fail(f"{path} must exist, found nothing; run `make argo-cd`")
    redis_program = shutil.which("redis-server")
    assert redis_program is not None, "redis-server must be on PATH; run `make argo-cd`"
    repository = Repository(folder / "git")
    redis, repo, metrics, repo_metrics = _free_ports(4)
    with ExitStack() as stack:
        kubectl("apply", "--server-side", f"--filename={MANIFESTS}")
        stack.callback(kubectl, "delete", "--ignore-not-found", f"--filename={MANIFESTS}")
        _await_kinds(kubectl)
        kubectl.apply(*_settings())
        stack.callback(kubectl, "delete", "namespace", NAMESPACE, "--wait=false")
        kubectl("patch", "configmap", "argocd-cm", "--namespace", NAMESPACE, "--type=merge",
                f"--patch-file={ROOT / 'gitops/argocd/argocd-cm.yaml'}")  # fmt: skip
        environment = {
            **os.environ,
            "KUBECONFIG": str(kubectl.kubeconfig),
            "ARGOCD_FAKE_IN_CLUSTER": "true",
            "ARGOCD_GPG_ENABLED": "false",
            "ARGOCD_TLS_DATA_PATH": str(folder / "tls"),
            "ARGOCD_SSH_DATA_PATH": str(folder / "ssh"),
            "PATH": f"{PROGRAM.parent}:{os.environ['PATH']}",
            "TMPDIR": str(folder),
        }
        addresses = ["--redis", f"127.0.0.1:{redis}"]
        for name, command in {
            "redis": [redis_program, "--bind", "127.0.0.1", "--port", str(redis), "--save", "", "--dir", str(folder)],
            "argocd-repo-server": [
                str(PROGRAM), "--address", "127.0.0.1", "--port", str(repo), "--disable-tls", "--client-ca-path=",
                "--metrics-port", str(repo_metrics), *addresses,
            ],
            "argocd-application-controller": [
                str(PROGRAM), "--kubeconfig", str(kubectl.kubeconfig), "--namespace", NAMESPACE,
                "--repo-server", f"127.0.0.1:{repo}", "--repo-server-plaintext", "--metrics-port", str(metrics),
                "--app-resync", "10", *addresses,
            ],
        }.items():  # fmt: skip
            stack.enter_context(_program(name, command, environment, folder))
        argo = ArgoCd(kubectl, repository)
        yield argo
        # Without the controller, nothing would end the application.
        argo_kubectl = kubectl.within(NAMESPACE)
        argo_kubectl("delete", "application", "--all", "--wait=true", "--timeout=60s")


@contextmanager
def _program(name: str, command: list[str], environment: Mapping[str, str], folder: Path) -> Iterator[None]:
    with (folder / f"{name}.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, env={**environment, "ARGOCD_BINARY_NAME": name}, stdout=log, stderr=log, cwd=folder
        )
        try:
            yield
        finally:
            process.terminate()
            process.wait(timeout=30)


def _await_kinds(kubectl: Kubectl) -> None:
    """Wait until the API server serves Argo CD's kinds. A new CRD has no conditions yet, so `kubectl wait` would fail."""
    deadline = time.monotonic() + 30
    while kubectl.run("get", "applications,appprojects", "--all-namespaces").returncode != 0:
        if time.monotonic() > deadline:
            pytest.fail("the API server must serve Argo CD's kinds within 30 s")
        time.sleep(0.5)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _settings() -> list[dict[str, Any]]:
    """The namespace, and the settings without which Argo CD does not start."""
    named = [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": _TRACKED}, "data": {}}
        for name in ("argocd-cm", "argocd-rbac-cm", "argocd-tls-certs-cm", "argocd-ssh-known-hosts-cm")
    ]
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "argocd-secret", "labels": _TRACKED},
        "stringData": {"server.secretkey": "only-for-tests"},
    }
    project = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "AppProject",
        "metadata": {"name": "default"},
        "spec": {
            "sourceRepos": ["*"],
            "destinations": [{"namespace": "*", "server": "*"}],
            "clusterResourceWhitelist": [{"group": "*", "kind": "*"}],
        },
    }
    objects = [*named, secret, project]
    for each in objects:
        each["metadata"]["namespace"] = NAMESPACE  # type: ignore[index]  # every metadata is a dict
    return [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}, *objects]
