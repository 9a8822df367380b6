"""A real control plane in a folder of its own, on free ports: etcd, API server and, on request, what runs Jobs.

Jobs and their pods are the work of the real controller-manager and the real scheduler. kwok stands for the kubelets of
one node. The scheduler ignores volumes, because nothing provides any.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from devcluster import certificates
from devcluster.api import ApiClient
from devcluster.errors import ApiError
from devcluster.gpus import Gpus
from devcluster.layout import BIN, REPOSITORY
from devcluster.pretend_nodes import gpu_node

from benchmarks.scale.kwok import write_configuration
from benchmarks.scale.programs import Program, free_ports

CRD = REPOSITORY / "crds" / "finetunejobs.yaml"
OPERATOR = certificates.Identity("operator", "operator")
"""An ordinary user, so that the API server's priority and fairness apply to its requests."""
NODE = "scale"
READY_SECONDS = 120
QUIET_SECONDS = 3.0
QUIET_CORES = 0.1
_LIFTED = {"kube_api_qps": 5000, "kube_api_burst": 5000}


class ControlPlane:
    """Its programs and its kubeconfig files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.etcd_port, self._peer_port, self._port = free_ports(3)
        self.url = f"https://127.0.0.1:{self._port}"
        self._pki = folder / "pki"
        self._write_identities()
        self.etcd = Program("etcd", self._etcd(), folder)
        self.api_server = Program("kube-apiserver", self._api_server(), folder)
        self.programs = [self.etcd, self.api_server]
        self.client = ApiClient(self.kubeconfig("admin"), timeout=60)

    def kubeconfig(self, identity: str) -> Path:
        """The kubeconfig of `admin`, `operator`, `kube-controller-manager` or `kube-scheduler`."""
        return self._pki / f"{identity}.kubeconfig"

    def await_ready(self) -> None:
        """Wait for the API server, and give it the CRD, the operator's rights and a StorageClass."""
        until_holds(self._is_ready, "the API server", self.programs)
        self.apply_crds(CRD)
        until_holds(self._serves_jobs, "the CRD", self.programs)
        binding = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "scale"},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": "cluster-admin",
            },
            # All controllers act as one user here, which has only the rights that they share.
            "subjects": [
                {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": identity.user}
                for identity in (OPERATOR, certificates.CONTROLLER_MANAGER)
            ],
        }
        storage = {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {
                "name": "none",
                "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
            },
            "provisioner": "scale.finetune.dev/none",
            "volumeBindingMode": "Immediate",
        }
        roles = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/scale"
        for path, body in ((roles, binding), ("/apis/storage.k8s.io/v1/storageclasses/none", storage)):
            self.client.apply(path, body)

    def restart_api_server(self) -> None:
        """Start the API server anew, and wait until it serves FineTuneJobs."""
        self.programs.remove(self.api_server)
        self.api_server.stop()
        self.api_server = Program("kube-apiserver", self._api_server(), self.folder)
        self.programs.append(self.api_server)
        until_holds(self._is_ready, "the API server", self.programs)
        until_holds(self._serves_jobs, "the CRD", self.programs)

    def await_quiet(self, seconds: float) -> None:
        """Wait until the API server has done its own work: it uses little CPU time for QUIET_SECONDS.

        It opens the storage of a custom resource at the first request, and then reads and decodes every object.
        """
        self._serves_jobs()
        deadline = time.monotonic() + seconds
        quiet = 0.0
        while quiet < QUIET_SECONDS:
            used, sampled = self.api_server.cpu_seconds, time.monotonic()
            time.sleep(1)
            self.check()
            now = time.monotonic()
            busy = (self.api_server.cpu_seconds - used) / (now - sampled) > QUIET_CORES
            quiet = 0.0 if busy else quiet + (now - sampled)
            if now > deadline:
                raise TimeoutError(f"the API server must be quiet within {seconds:.0f} s; see its log")

    def run_pods(self, *, gpus: int, seconds: float, train_seconds: float) -> None:
        """Start what makes, places and runs the pods of Jobs, with one node of `gpus` GPUs."""
        config = self.folder / "kwok.yaml"
        write_configuration(config, seconds, train_seconds)
        scheduler = self.folder / "scheduler.json"
        scheduler.write_text(json.dumps(_scheduler(self.kubeconfig("kube-scheduler"))))
        manager = self.kubeconfig("kube-controller-manager")
        self.programs += [
            Program(
                "kube-controller-manager",
                _command(
                    "kube-controller-manager",
                    kubeconfig=manager,
                    authentication_kubeconfig=manager,
                    authorization_kubeconfig=manager,
                    bind_address="127.0.0.1",
                    secure_port=0,
                    leader_elect=False,
                    # Claims have a finalizer, so without its controller each claim would stay for ever.
                    controllers="job-controller,garbage-collector-controller,persistentvolumeclaim-protection-controller",
                    concurrent_job_syncs=10,
                    profiling=False,
                    **_LIFTED,
                ),
                self.folder,
            ),
            Program(
                "kube-scheduler",
                _command("kube-scheduler", config=scheduler, secure_port=0, profiling=False),
                self.folder,
            ),
            Program(
                "kwok",
                [
                    BIN / "kwok",
                    f"--kubeconfig={self.kubeconfig('admin')}",
                    f"--config={config}",
                    "--manage-all-nodes",
                ],
                self.folder,
            ),
        ]
        # Pods of all stages share the node, so it has no taint that keeps CPU stages away.
        node = replace(gpu_node(NODE, Gpus("NVIDIA-H100-80GB-HBM3", 81559, gpus)), taints=())
        body = node.body()
        body["status"]["capacity"] |= {
            "cpu": "100k",
            "memory": "1Pi",
            "ephemeral-storage": "1Pi",
            "pods": "1M",
        }
        self.client.request("POST", "/api/v1/nodes", body)

    def check(self) -> None:
        """Raise RuntimeError if a program has ended."""
        for program in self.programs:
            program.check()

    def stop(self) -> None:
        """End all programs, the API server after its clients."""
        for program in reversed(self.programs):
            program.stop()

    def _is_ready(self) -> bool:
        try:
            return self.client.request("GET", "/readyz") is not None
        except (ApiError, OSError):
            return False

    def apply_crds(self, path: Path) -> None:
        """Create or change the CustomResourceDefinitions of a YAML file."""
        for document in read_documents(path):
            name = document["metadata"]["name"]
            self.client.apply(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}", document)

    def _serves_jobs(self) -> bool:
        try:
            self.client.request("GET", "/apis/finetune.dev/v1alpha1/finetunejobs?limit=1")
        except (ApiError, OSError):
            return False
        return True

    def _write_identities(self) -> None:
        authority = certificates.Authority()
        self._pki.mkdir(parents=True)
        (self._pki / "ca.crt").write_bytes(authority.ca.certificate)
        identities = (
            certificates.ADMIN,
            certificates.CONTROLLER_MANAGER,
            certificates.SCHEDULER,
            OPERATOR,
        )
        for identity in identities:
            credential = authority.client(identity)
            text = certificates.kubeconfig(self.url, authority.ca.certificate, identity.user, credential)
            certificates.write_private(self.kubeconfig(identity.file), text.encode())
        server = authority.server("kube-apiserver", ["localhost"], ["127.0.0.1"])
        (self._pki / "server.crt").write_bytes(server.certificate)
        certificates.write_private(self._pki / "server.key", server.key)

    def _etcd(self) -> list[str | Path]:
        url = f"http://127.0.0.1:{self.etcd_port}"
        return _command(
            "etcd",
            data_dir=self.folder / "etcd",
            unsafe_no_fsync=True,
            log_level="warn",
            listen_client_urls=url,
            advertise_client_urls=url,
            listen_peer_urls=f"http://127.0.0.1:{self._peer_port}",
            initial_advertise_peer_urls=f"http://127.0.0.1:{self._peer_port}",
            initial_cluster=f"default=http://127.0.0.1:{self._peer_port}",
            quota_backend_bytes=8 * 2**30,
        )

    def _api_server(self) -> list[str | Path]:
        return _command(
            "kube-apiserver",
            etcd_servers=f"http://127.0.0.1:{self.etcd_port}",
            bind_address="127.0.0.1",
            advertise_address="127.0.0.1",
            secure_port=self._port,
            endpoint_reconciler_type="none",
            service_cluster_ip_range="10.96.0.0/16",
            authorization_mode="RBAC",
            # No controller makes default ServiceAccounts, or takes the taint from a new node.
            disable_admission_plugins="ServiceAccount,TaintNodesByCondition",
            client_ca_file=self._pki / "ca.crt",
            tls_cert_file=self._pki / "server.crt",
            tls_private_key_file=self._pki / "server.key",
            service_account_issuer="https://kubernetes.default.svc",
            service_account_key_file=self._pki / "server.key",
            service_account_signing_key_file=self._pki / "server.key",
            event_ttl="10m",
            profiling=False,
        )


def _scheduler(kubeconfig: Path) -> dict[str, Any]:
    volumes = ("VolumeBinding", "VolumeZone", "VolumeRestrictions", "NodeVolumeLimits")
    return {
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "leaderElection": {"leaderElect": False},
        "clientConnection": {"kubeconfig": str(kubeconfig), "qps": 5000, "burst": 5000},
        "profiles": [
            {
                "schedulerName": "default-scheduler",
                "plugins": {"multiPoint": {"disabled": [{"name": name} for name in volumes]}},
            }
        ],
    }


def _command(name: str, **flags: str | int | bool | Path) -> list[str | Path]:
    values = {
        key.replace("_", "-"): str(value).lower() if isinstance(value, bool) else value
        for key, value in flags.items()
    }
    return [BIN / name, *(f"--{key}={value}" for key, value in values.items())]


def read_documents(path: Path) -> list[dict[str, Any]]:
    """The documents of a YAML file."""
    import yaml  # noqa: PLC0415 -- slow, and needed once

    return [each for each in yaml.load_all(path.read_text(), Loader=yaml.CSafeLoader) if each]


def until_holds(
    holds: Callable[[], bool], what: str, programs: Sequence[Program], seconds: float = READY_SECONDS
) -> None:
    """Wait until `holds` is true; raises TimeoutError with `what`, and RuntimeError if a program ends meanwhile."""
    deadline = time.monotonic() + seconds
    while not holds():
        for program in programs:
            program.check()
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} must be ready within {seconds:.0f} s; see the logs beside its data")
        time.sleep(0.2)


@contextmanager
def running(folder: Path) -> Iterator[ControlPlane]:
    """A control plane for the duration of a `with` block."""
    folder.mkdir(parents=True)
    plane = ControlPlane(folder)
    try:
        plane.await_ready()
        yield plane
    finally:
        plane.stop()
