"""Names, labels, images and certificates of the dev cluster."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from devcluster import layout
from devcluster.certificates import KUBELET, Authority
from devcluster.components import AUDIT_LOG, audit_policy, containerd, containerd_config
from devcluster.errors import DevClusterError
from devcluster.gpus import Gpus, patches
from devcluster.images import ThinImage, oci_archive, runtime_spec
from devcluster.layout import CONTAINERD_VARIABLE, IMAGES_VARIABLE, INSIDE, Layout
from devcluster.product import SYSTEM_NAMESPACE, _merged


def test_the_audit_log_has_the_operators_requests_only() -> None:
    policy = json.loads(audit_policy())
    assert policy["rules"] == [
        {"level": "Metadata", "userGroups": [f"system:serviceaccounts:{SYSTEM_NAMESPACE}"]},
        {"level": "None"},
    ]
    assert AUDIT_LOG.relative_to(INSIDE) == Layout("x").audit_log.relative_to(Layout("x").state)


@pytest.mark.parametrize(("chosen", "program"), [("", "containerd"), ("1", "containerd"), ("2", "own")])
def test_the_environment_chooses_the_container_runtime(
    chosen: str, program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "containerd"
    own.touch(0o755)
    monkeypatch.setattr(layout, "BIN", tmp_path)
    monkeypatch.setenv(CONTAINERD_VARIABLE, chosen)
    assert containerd().argv[0] == (str(own) if program == "own" else program)
    assert f'config_path = "{INSIDE}/{Layout("x").registries.name}"' in containerd_config()


def test_a_container_runtime_that_is_not_built_is_named_with_its_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "BIN", tmp_path)
    monkeypatch.setenv(CONTAINERD_VARIABLE, "2")
    with pytest.raises(DevClusterError, match=r"build_go_tools\.sh containerd first"):
        containerd()


@pytest.mark.parametrize("name", ["", "Upper", "a/b", "..", "-x", "x-", "a" * 41])
def test_a_name_that_could_leave_the_state_folder_is_rejected(name: str) -> None:
    with pytest.raises(DevClusterError, match="must be 1 to 40 lower-case letters"):
        Layout(name)


def test_the_longest_name_keeps_the_socket_path_within_the_limit_of_unix_sockets() -> None:
    assert len(str(Layout("a" * 40).containerd_socket)) < 108


def test_labels_name_product_memory_and_architecture() -> None:
    labels = Gpus("NVIDIA-H100-80GB-HBM3", 81559, 8).labels()
    assert labels["nvidia.com/gpu.product"] == "NVIDIA-H100-80GB-HBM3"
    assert labels["nvidia.com/gpu.memory"] == "81559"
    assert labels["nvidia.com/gpu.family"] == "hopper"
    assert labels["nvidia.com/gpu.compute.major"] == "9"


def test_a_count_of_zero_removes_resource_and_labels() -> None:
    metadata, status = patches(Gpus(count=0))
    assert set(metadata["metadata"]["labels"].values()) == {None}
    assert status["status"]["allocatable"] == {"nvidia.com/gpu": None}


def test_an_unknown_product_is_rejected() -> None:
    with pytest.raises(DevClusterError, match="must name one of"):
        Gpus("ACME-9000").labels()


def test_the_node_certificate_names_user_and_group_of_the_node_authorizer() -> None:
    subject = x509.load_pem_x509_certificate(Authority().client(KUBELET).certificate).subject
    assert subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "system:node:node1"
    assert subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value == "system:nodes"


def test_an_archive_names_its_images_and_refers_only_to_blobs_it_holds() -> None:
    images = [
        ThinImage("docker.io/a/b:1", ["/bin/true"]),
        ThinImage("docker.io/c/d:2", ["/bin/false"], {"A": "b"}),
    ]
    with tarfile.open(fileobj=io.BytesIO(oci_archive(images))) as archive:
        files = {entry.name: archive.extractfile(entry) for entry in archive}
        blobs = {name: stream.read() for name, stream in files.items() if stream is not None}
    index = json.loads(blobs["index.json"])
    names = [manifest["annotations"]["io.containerd.image.name"] for manifest in index["manifests"]]
    assert names == ["docker.io/a/b:1", "docker.io/c/d:2"]
    for entry in index["manifests"]:
        manifest = json.loads(blobs[f"blobs/sha256/{entry['digest'].removeprefix('sha256:')}"])
        for descriptor in (manifest["config"], *manifest["layers"]):
            blob = blobs[f"blobs/sha256/{descriptor['digest'].removeprefix('sha256:')}"]
            assert len(blob) == descriptor["size"]


def test_the_runtime_spec_adds_read_only_mounts_and_drops_the_limits() -> None:
    before = {
        "process": {"rlimits": [{"type": "RLIMIT_NOFILE"}], "args": ["sh"]},
        "mounts": [{"destination": "/proc"}],
    }
    spec = json.loads(runtime_spec(json.dumps(before)))
    assert "rlimits" not in spec["process"]
    added = spec["mounts"][1:]
    destinations = {mount["destination"] for mount in added}
    assert {"/usr", "/opt/finetune/tests"} <= destinations
    assert "/opt/finetune/.git" not in destinations
    assert all("ro" in mount["options"] for mount in added)


def test_built_images_run_without_anything_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(IMAGES_VARIABLE, "built")
    before = {"process": {"rlimits": [], "args": ["sh"]}, "mounts": [{"destination": "/proc"}]}
    spec = json.loads(runtime_spec(json.dumps(before)))
    assert spec == {"process": {"args": ["sh"]}, "mounts": [{"destination": "/proc"}]}


def test_chart_values_are_merged_object_by_object() -> None:
    small = {"replicas": 1, "trainer": {"device": "cpu", "limits": {"a": 1}}, "list": [1, 2]}
    changes = {"trainer": {"limits": {"b": 2}}, "list": [3]}
    assert _merged(small, changes) == {
        "replicas": 1,
        "trainer": {"device": "cpu", "limits": {"a": 1, "b": 2}},
        "list": [3],
    }
    assert small["trainer"] == {"device": "cpu", "limits": {"a": 1}}
