"""The dev cluster itself: its guarantees to the tests and the demo, and its complete removal.

These tests start additional clusters, even while the other tests of the run use one.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import shlex
import signal
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from devcluster import cluster, images
from devcluster.api import ApiClient
from devcluster.certificates import ADMIN, Authority
from devcluster.gpus import Gpus, set_gpus
from devcluster.kubectl import Kubectl
from devcluster.layout import Layout, python_command, python_environment

from tests.support.e2e.machine import Machine, descendants, survivors
from tests.support.repository import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.devcluster]

_SECONDS = 60.0
_RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


def wait_for(condition: Callable[[], bool], what: str, seconds: float = _SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} within {seconds:.0f} s"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def layout() -> Iterator[Layout]:
    """A running dev cluster for this module."""
    with cluster.running(Layout(f"own-{os.getpid()}")) as running:
        yield running


@pytest.fixture(scope="module")
def admin(layout: Layout) -> Kubectl:
    return Kubectl(layout.kubeconfig)


@pytest.fixture
def room(admin: Kubectl, request: pytest.FixtureRequest) -> Iterator[Kubectl]:
    """Kubectl bound to a fresh namespace that enforces the restricted Pod Security level."""
    name = request.node.name.removeprefix("test_").replace("_", "-")[:60].strip("-")
    admin.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": _RESTRICTED}})
    yield admin.within(name)
    admin.within(name)("delete", "pods", "--all", "--grace-period=1", "--wait=false")
    admin("delete", "namespace", name, "--timeout=60s")


def pod(name: str, command: list[str], **container: Any) -> dict[str, Any]:
    """Return a pod with the thin trainer image that the restricted level admits."""
    security = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounts = [{"name": "tmp", "mountPath": "/tmp"}, *container.pop("volumeMounts", [])]  # noqa: S108  an emptyDir
    volumes = [{"name": "tmp", "emptyDir": {}}, *container.pop("volumes", [])]
    main = {"name": "main", "image": images.TRAINER_IMAGE, "command": command, "securityContext": security}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [main | {"volumeMounts": mounts} | container],
            "volumes": volumes,
        },
    }


def finished(room: Kubectl, name: str) -> str:
    """Wait until the pod `name` succeeds, and return its log."""
    room("wait", f"pod/{name}", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s")
    return room("logs", name)


def python(source: str) -> list[str]:
    return [f"{images.PRODUCT_ROOT}/.venv/bin/python", "-c", source]


def test_is_ready_soon_after_the_start(layout: Layout, admin: Kubectl) -> None:
    """The goal is 15 s on two free cores; the bound allows for a busy machine."""
    seconds = cluster.bring_up_seconds(layout)
    print(f"the start took {seconds} s")
    assert seconds < _SECONDS
    assert "Ready" in admin("get", "nodes")


def test_api_server_reports_the_pinned_version(admin: Kubectl) -> None:
    module = ROOT / "tools" / "devcluster" / "components" / "go.mod"
    pinned = next(
        line.split()[1] for line in module.read_text().splitlines() if "k8s.io/kubernetes v" in line
    )
    assert admin.json("version")["serverVersion"]["gitVersion"] == pinned


def test_refuses_a_request_without_an_identity(layout: Layout, tmp_path: Path) -> None:
    """Anonymous access is disabled: the response is 401, not the 403 for an identity without rights."""
    authority = tmp_path / "ca.crt"
    authority.write_bytes((layout.state / "pki" / "ca.crt").read_bytes())
    port = int(layout.kubeconfig.read_text().split("https://127.0.0.1:")[1].split('"')[0])
    context = ssl.create_default_context(cafile=str(authority))
    for path in ("/api", "/version", "/healthz"):
        connection = http.client.HTTPSConnection("127.0.0.1", port, context=context)
        connection.request("GET", path)
        assert connection.getresponse().status == http.client.UNAUTHORIZED, path
        connection.close()


def kubectl_as(layout: Layout, folder: Path, user: dict[str, str]) -> Kubectl:
    """Return kubectl with the identity `user` (an entry of a kubeconfig) instead of the administrator's."""
    config = json.loads(layout.kubeconfig.read_text())
    config["users"][0]["user"] = user
    path = folder / "kubeconfig"
    path.write_text(json.dumps(config))
    return Kubectl(path)


def test_refuses_a_certificate_of_another_authority(layout: Layout, tmp_path: Path) -> None:
    forged = Authority().client(ADMIN)
    user = {
        "client-certificate-data": base64.b64encode(forged.certificate).decode(),
        "client-key-data": base64.b64encode(forged.key).decode(),
    }
    answer = kubectl_as(layout, tmp_path, user).run("get", "--raw", "/api")
    assert answer.returncode != 0
    assert "Unauthorized" in answer.stderr


def test_rbac_denies_an_identity_without_rights(layout: Layout, room: Kubectl, tmp_path: Path) -> None:
    room("create", "serviceaccount", "nobody")
    nobody = kubectl_as(layout, tmp_path, {"token": room("create", "token", "nobody").strip()})
    assert f"{room.namespace}:nobody" in nobody("auth", "whoami")
    answer = nobody.run("get", "secrets", "--all-namespaces")
    assert answer.returncode != 0
    assert "Forbidden" in answer.stderr


@pytest.mark.parametrize(
    ("identity", "verb", "resource", "allowed"),
    [
        ("kube-scheduler", "list", "persistentvolumes", True),
        ("kube-scheduler", "list", "secrets", False),
        ("kube-proxy", "list", "services", True),
        ("kube-proxy", "delete", "pods", False),
        ("provisioner", "create", "persistentvolumes", True),
        ("provisioner", "list", "secrets", False),
        ("kubelet", "list", "secrets", False),
    ],
)
def test_a_component_has_only_the_rights_of_its_name(
    layout: Layout, tmp_path: Path, identity: str, verb: str, resource: str, *, allowed: bool
) -> None:
    config = json.loads((layout.state / "pki" / f"{identity}.kubeconfig").read_text())
    component = kubectl_as(layout, tmp_path, config["users"][0]["user"])
    answer = component.run("auth", "can-i", verb, resource, "--all-namespaces")
    # Some denials have a reason after the word.
    assert answer.stdout.split()[0] == ("yes" if allowed else "no"), answer.stderr


def test_logs_exec_and_copy_work(room: Kubectl, tmp_path: Path) -> None:
    room.apply(pod("talker", ["/bin/sh", "-c", "echo from the log; exec sleep 600"]))
    room("wait", "pod/talker", "--for=condition=Ready", "--timeout=60s")
    assert room("logs", "talker") == "from the log\n"
    assert room("exec", "talker", "--", "id", "-u") == f"{images.NONROOT}\n"
    source, back = tmp_path / "source", tmp_path / "back"
    source.write_text("there and back")
    room("cp", str(source), "talker:/tmp/file")
    room("cp", "talker:/tmp/file", str(back))
    assert back.read_text() == "there and back"


def test_a_claim_is_bound_written_by_a_non_root_user_and_its_folder_removed(
    layout: Layout, room: Kubectl
) -> None:
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"}, "spec": spec}
    volume = {"name": "data", "persistentVolumeClaim": {"claimName": "data"}}
    mount = {"name": "data", "mountPath": "/data"}
    write = ["/bin/sh", "-c", "echo kept > /data/file"]
    room.apply(claim, pod("writer", write, volumes=[volume], volumeMounts=[mount]))
    finished(room, "writer")
    name = room.json("get", "pvc", "data")["spec"]["volumeName"]
    folder = layout.state / "volumes" / name
    assert (folder / "file").read_text() == "kept\n"
    room("delete", "pod", "writer")
    room("delete", "pvc", "data", "--timeout=60s")
    wait_for(lambda: not folder.exists(), "the volume's folder must be removed")
    wait_for(lambda: room.run("get", "pv", name).returncode != 0, "the volume object must be deleted")


def test_restricted_namespace_refuses_a_privileged_pod(room: Kubectl) -> None:
    body = pod("greedy", ["true"], securityContext={"privileged": True})
    answer = room.run("create", "--dry-run=server", "--filename=-", stdin=json.dumps(body))
    assert answer.returncode != 0
    assert "restricted" in answer.stderr


def test_a_pod_reaches_the_api_server_with_its_service_account(room: Kubectl) -> None:
    source = """
import json, os, ssl, urllib.request
folder = "/var/run/secrets/kubernetes.io/serviceaccount"
context = ssl.create_default_context(cafile=folder + "/ca.crt")
header = {"Authorization": "Bearer " + open(folder + "/token").read()}
url = f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}"
body = json.dumps({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}).encode()
header["Content-Type"] = "application/json"
request = urllib.request.Request(url + "/apis/authentication.k8s.io/v1/selfsubjectreviews", body, header)
print(url, json.load(urllib.request.urlopen(request, context=context))["status"]["userInfo"]["username"])
"""
    room.apply(pod("client", python(source)))
    expected = f"https://10.96.0.1:443 system:serviceaccount:{room.namespace}:default\n"
    assert finished(room, "client") == expected


def test_a_pod_reaches_another_pod_directly_and_through_a_service(room: Kubectl) -> None:
    server = pod("server", ["/bin/sh", "-c", "while true; do echo pong | nc -l -p 8080; done"])
    server["metadata"]["labels"] = {"app": "server"}
    ports = [{"port": 80, "targetPort": 8080}]
    service_spec = {"selector": {"app": "server"}, "ports": ports}
    room.apply(
        server, {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "server"}, "spec": service_spec}
    )
    room("wait", "pod/server", "--for=condition=Ready", "--timeout=60s")
    address = room.json("get", "pod", "server")["status"]["podIP"]
    service = room.json("get", "service", "server")["spec"]["clusterIP"]
    ask = "until nc -w 2 {} {} </dev/null 2>/dev/null | grep pong; do sleep 0.2; done"
    script = "; ".join([ask.format(address, 8080), ask.format(service, 80)])
    room.apply(pod("client", ["/bin/sh", "-c", script]))
    assert finished(room, "client") == "pong\npong\n"


def test_two_pods_take_the_two_gpus_and_the_third_waits_for_one(room: Kubectl) -> None:
    limits = {"limits": {"nvidia.com/gpu": "1"}}
    names = ["first", "second", "third"]
    room.apply(*(pod(name, ["sleep", "600"], resources=limits) for name in names))
    phases: list[str] = []

    def two_run() -> bool:
        items = room.json("get", "pods")["items"]
        phases[:] = sorted(item["status"]["phase"] for item in items)
        return phases == ["Pending", "Running", "Running"]

    wait_for(two_run, "two of three pods must run")
    running = [item for item in room.json("get", "pods")["items"] if item["status"]["phase"] == "Running"]
    room("delete", "pod", running[0]["metadata"]["name"])
    room("wait", "pod", "--all", "--for=condition=Ready", "--timeout=60s")


def test_gpus_are_chosen_and_outlive_the_status_updates_of_the_kubelet(
    layout: Layout, admin: Kubectl
) -> None:
    client = ApiClient(layout.kubeconfig)
    wanted = Gpus("NVIDIA-A100-SXM4-80GB", 81920, 4)
    set_gpus(client, wanted)
    try:
        node = admin.json("get", "node", "node1")
        heartbeat = node["status"]["conditions"][0]["lastHeartbeatTime"]

        def beaten() -> bool:
            status = admin.json("get", "node", "node1")["status"]
            return bool(status["conditions"][0]["lastHeartbeatTime"] != heartbeat)

        wait_for(beaten, "the kubelet must update the status", seconds=400)
        node = admin.json("get", "node", "node1")
        assert node["status"]["allocatable"]["nvidia.com/gpu"] == "4"
        labels = node["metadata"]["labels"]
        assert labels["nvidia.com/gpu.memory"] == "81920"
        assert labels["nvidia.com/gpu.product"] == "NVIDIA-A100-SXM4-80GB"
        assert (labels["nvidia.com/gpu.compute.major"], labels["nvidia.com/gpu.compute.minor"]) == ("8", "0")
    finally:
        set_gpus(client, Gpus())


def _start_with_a_running_pod(name: Layout) -> None:
    room = Kubectl(name.kubeconfig)
    room.apply(pod("busy", ["sleep", "600"]))
    room("wait", "pod/busy", "--for=condition=Ready", "--timeout=60s")


def test_down_leaves_nothing(layout: Layout) -> None:
    """Meanwhile a second cluster, that of the other tests, keeps running."""
    other = Layout(f"down-{os.getpid()}")
    before = Machine.look(other.name)
    owner = cluster.start(other, die_with_caller=False)
    family = descendants(owner.pid)
    _start_with_a_running_pod(other)
    family |= descendants(owner.pid)
    assert len(family) > 10
    assert cluster.stop(other)
    owner.wait()
    assert survivors(family) == []
    assert Machine.look(other.name) == before
    assert not other.state.exists()
    assert not other.lock.exists()
    assert Kubectl(layout.kubeconfig).run("get", "nodes").returncode == 0


def test_sigkill_of_the_owner_ends_everything_and_down_removes_the_rest() -> None:
    crashed = Layout(f"crash-{os.getpid()}")
    before = Machine.look(crashed.name)
    owner = cluster.start(crashed, die_with_caller=False)
    _start_with_a_running_pod(crashed)
    family = descendants(owner.pid)
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    wait_for(lambda: survivors(family) == [], "all processes must end")
    after = Machine.look(crashed.name)
    assert (after.mounts, after.firewall, after.links, after.settings) == (
        before.mounts, before.firewall, before.links, before.settings,
    )  # fmt: skip
    assert not cluster.status(crashed).running
    assert not cluster.stop(crashed)
    assert Machine.look(crashed.name) == before
    assert not crashed.state.exists()


def test_run_ends_with_its_parent() -> None:
    """SIGKILL gives the parent no chance to stop the cluster."""
    name = Layout(f"run-{os.getpid()}")
    before = Machine.look(name.name)
    run = python_command("__main__", "--name", name.name, "run", "--", "sleep", "600")
    script = f"{shlex.join(run)}; true"  # `true` keeps the shell as a parent instead of becoming the program
    parent = subprocess.Popen(["sh", "-c", script], env=python_environment(), stderr=subprocess.DEVNULL)
    wait_for(name.ready.exists, "the cluster of `run` must be ready", seconds=120)
    family = descendants(parent.pid)
    parent.kill()
    parent.wait()
    wait_for(lambda: survivors(family) == [], "all processes must end")
    assert Machine.look(name.name) == before
    assert not name.state.exists()
    assert not name.lock.exists()


def test_run_sets_kubeconfig_and_gives_the_exit_status_of_its_command() -> None:
    name = Layout(f"status-{os.getpid()}")
    run = python_command(
        "__main__", "--name", name.name, "run", "--", "sh", "-c", 'test -s "$KUBECONFIG" && exit 7'
    )
    assert subprocess.run(run, env=python_environment(), check=False).returncode == 7
    assert not name.state.exists()
