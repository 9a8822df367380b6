"""Kubeflow Trainer with JobSet on the same burst: the time from a TrainJob's acceptance to its batch/v1 Job.

Both controllers are real, with JobSet's webhooks, which set its defaults. What only costs the peer time is left out: the
validation of TrainJobs and the webhooks for pods.
"""

from __future__ import annotations

import base64
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devcluster import certificates
from devcluster.errors import ApiError
from devcluster.layout import BIN

from benchmarks.scale.control_plane import ControlPlane, read_documents, running, until_holds
from benchmarks.scale.load import FirstJobs, Load, accepted, namespace_of, until
from benchmarks.scale.operator_process import LIFTED
from benchmarks.scale.programs import Program, free_ports

PEER = BIN.parent / "peer"
"""Manifests, and the trainer's build without client limits (`scripts/tools/build_peer.sh`)."""
TRAINER_NAMESPACE = "kubeflow-system"
TRAINER_SECRET = "kubeflow-trainer-webhook-cert"  # noqa: S105 -- the name of a Secret
CERTIFICATES = Path("/tmp/k8s-webhook-server/serving-certs")  # noqa: S108 -- the trainer reads its certificate nowhere else
RUNTIME_LABEL = "jobset.sigs.k8s.io/jobset-name"
TRAINJOBS = "/apis/trainer.kubeflow.org/v1alpha1"
JOBSETS = "/apis/jobset.x-k8s.io/v1alpha2"
READY_SECONDS = 120


@dataclass(frozen=True)
class PeerLimits:
    """The client limits of both controllers."""

    name: str
    trainer: Path
    jobset: Mapping[str, int]
    """Its own default is 500 calls a second."""


PEER_LIMITS = (
    PeerLimits("default", BIN / "trainer-controller-manager", {"qps": 500, "burst": 500}),
    PeerLimits("lifted", PEER / "trainer-controller-manager", LIFTED),
)


async def peer_burst(folder: Path, jobs: int, namespaces: int, limits: PeerLimits) -> dict[str, Any]:
    """Create `jobs` TrainJobs at once and return the same figures as `burst` does."""
    first = FirstJobs(RUNTIME_LABEL)
    with running(folder) as plane, controllers(plane, limits) as programs:
        async with Load.connected(plane.kubeconfig("admin")) as load:
            await load.create_namespaces(namespaces)
            async with first.watched(load):
                # The first one shows that every controller and webhook works.
                await _create(load, "warm", 0, namespaces)
                await until(lambda: "warm" in first.seen, READY_SECONDS, lambda: "the peer made no Job")
                before = [program.cpu_seconds for program in (plane.api_server, *programs)]
                began = time.monotonic()
                times = await accepted(
                    range(jobs), lambda number: _create(load, f"job-{number}", number, namespaces)
                )
                await until(
                    lambda: len(first.seen) > jobs, 600, lambda: f"{len(first.seen)} of {jobs} have a Job"
                )
                after = [program.cpu_seconds for program in (plane.api_server, *programs)]
            return {
                "measurement": "burst",
                "limits": limits.name,
                "jobs": jobs,
                **first.figures(times, began),
                "operatorCpuSeconds": round(sum(after[1:]) - sum(before[1:]), 2),
                "apiServerCpuSeconds": round(after[0] - before[0], 2),
                "operatorMegabytes": sum(program.peak_bytes for program in programs) >> 20,
            }


async def _create(load: Load, name: str, number: int, namespaces: int) -> float:
    """Create one TrainJob; returns the time (time.monotonic) at which the API server had accepted it."""
    body = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": name},
        "spec": {
            "runtimeRef": {"name": "torch-distributed"},
            "trainer": {"numNodes": 1, "image": "registry.example/trainer:1", "command": ["true"]},
        },
    }
    await load.request("POST", f"{TRAINJOBS}/namespaces/{namespace_of(number, namespaces)}/trainjobs", body)
    return time.monotonic()


@contextmanager
def controllers(plane: ControlPlane, limits: PeerLimits) -> Iterator[tuple[Program, Program]]:
    """Both controllers for the duration of a `with` block."""
    if not limits.trainer.exists():
        raise SystemExit(f"{limits.trainer} must exist for --peer; run make peer")
    if CERTIFICATES.exists():
        raise SystemExit(f"{CERTIFICATES} must not exist, because the peer needs it; move it away")
    jobset_port, jobset_health, trainer_port, trainer_health = free_ports(4)
    certificate = _install(plane, jobset_port)
    config = plane.folder / "jobset.json"
    config.write_text(json.dumps(_jobset_settings(certificate, jobset_port, jobset_health, limits)))
    environment = {"KUBECONFIG": str(plane.kubeconfig("operator"))}
    programs = [Program("jobset", [BIN / "jobset", f"--config={config}"], plane.folder, environment)]
    try:
        flags = (f"--webhook-server-port={trainer_port}", f"--health-probe-bind-address=:{trainer_health}")
        programs.append(Program("trainer", [limits.trainer, *flags], plane.folder, environment))
        _mount_certificate(plane, programs)
        yield programs[0], programs[1]
    finally:
        for program in programs:
            program.stop()
        shutil.rmtree(CERTIFICATES, ignore_errors=True)


def _install(plane: ControlPlane, jobset_port: int) -> Path:
    """Install CRDs, JobSet's webhooks and the runtime; returns the folder with JobSet's certificate."""
    manifests = PEER / "manifests"
    for path in (*manifests.glob("*k8s.io_*.yaml"), *manifests.glob("*kubeflow.org_*.yaml")):
        plane.apply_crds(path)
    authority = certificates.Authority()
    server = authority.server("jobset", ["localhost"], ["127.0.0.1"])
    folder = plane.folder / "jobset"
    folder.mkdir()
    (folder / "tls.crt").write_bytes(server.certificate)
    certificates.write_private(folder / "tls.key", server.key)
    prefix = "/apis/admissionregistration.k8s.io/v1"
    for document in read_documents(manifests / "jobset_webhooks.yaml"):
        document["webhooks"] = [each for each in document["webhooks"] if "pod" not in each["name"]]
        for webhook in document["webhooks"]:
            path = webhook["clientConfig"]["service"]["path"]
            webhook["clientConfig"] = {
                "url": f"https://127.0.0.1:{jobset_port}{path}",
                "caBundle": base64.b64encode(authority.ca.certificate).decode(),
            }
        plural = document["kind"].lower() + "s"
        plane.client.apply(f"{prefix}/{plural}/{document['metadata']['name']}", document)
    # The trainer puts its certificate into these two. Without webhooks, the API server never asks it.
    name = "validator.trainer.kubeflow.org"
    empty = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": name},
        "webhooks": [],
    }
    plane.client.apply(f"{prefix}/validatingwebhookconfigurations/{name}", empty)
    for namespace in (TRAINER_NAMESPACE, "jobset-system"):
        plane.client.request("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
    secret = {"metadata": {"name": TRAINER_SECRET}}
    plane.client.request("POST", f"/api/v1/namespaces/{TRAINER_NAMESPACE}/secrets", secret)
    runtime = read_documents(manifests / "torch_distributed.yaml")[0]
    until_holds(lambda: _serves_kinds(plane), "the CRDs of the peer", plane.programs)
    until_holds(lambda: _applies(plane, runtime), "the runtime of the peer", plane.programs)
    return folder


def _serves_kinds(plane: ControlPlane) -> bool:
    """True once the API server lists every kind. The controllers end if one is missing at their start."""
    served: set[str] = set()
    for path in (TRAINJOBS, JOBSETS):
        with suppress(ApiError):
            served |= {each["name"] for each in plane.client.request("GET", path).get("resources") or ()}
    return served >= {"trainjobs", "trainingruntimes", "clustertrainingruntimes", "jobsets"}


def _applies(plane: ControlPlane, runtime: dict[str, Any]) -> bool:
    try:
        plane.client.apply(f"{TRAINJOBS}/clustertrainingruntimes/{runtime['metadata']['name']}", runtime)
    except ApiError:
        return False
    return True


def _jobset_settings(certificate: Path, port: int, health: int, limits: PeerLimits) -> dict[str, Any]:
    return {
        "apiVersion": "config.jobset.x-k8s.io/v1alpha1",
        "kind": "Configuration",
        "leaderElection": {"leaderElect": False},
        "metrics": {"bindAddress": "0"},
        "health": {"healthProbeBindAddress": f":{health}"},
        "webhook": {"port": port, "certDir": str(certificate)},
        "clientConnection": dict(limits.jobset),
        "internalCertManagement": {"enable": False},
    }


def _mount_certificate(plane: ControlPlane, programs: list[Program]) -> None:
    """Copy the trainer's certificate from its Secret into its folder, as a kubelet would."""
    data: dict[str, str] = {}

    def issued() -> bool:
        path = f"/api/v1/namespaces/{TRAINER_NAMESPACE}/secrets/{TRAINER_SECRET}"
        data.update((plane.client.request("GET", path) or {}).get("data") or {})
        return "tls.crt" in data

    until_holds(issued, "the trainer's certificate", [*plane.programs, *programs])
    CERTIFICATES.mkdir(parents=True, exist_ok=True)
    for name, text in data.items():
        certificates.write_private(CERTIFICATES / name, base64.b64decode(text))
