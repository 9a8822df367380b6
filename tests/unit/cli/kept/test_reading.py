from __future__ import annotations

import pytest
from finetune_cli.cluster.kubectl import Kubectl
from finetune_cli.errors import UsageError
from finetune_cli.kept.reading import image_of, node_of, read_kept, spec_of

from tests.support.fake_kubectl import FakeKubectl
from tests.support.kept_jobs import IMAGE, frame, job, pod

CLAIM = {"metadata": {"name": "numbers-workspace"}}


def serve(kubectl: FakeKubectl, output: bytes) -> None:
    kubectl.answer("persistentvolumeclaims", output=CLAIM)
    kubectl.answer("create", output={"metadata": {"name": "reader-1"}})
    kubectl.answer("get", "pods", output={"status": {"phase": "Succeeded"}})
    kubectl.answer("logs", output=output)
    kubectl.answer("delete")


def test_the_file_is_read_with_the_image_of_the_job(kubectl: FakeKubectl) -> None:
    serve(kubectl, frame(b"page"))
    assert read_kept(Kubectl(), job(), ["html"], image=None, seconds=9).content == b"page"
    (given,) = kubectl.given()
    assert given["spec"]["containers"][0]["image"] == IMAGE
    assert given["spec"]["containers"][0]["args"] == ["kept", "/kept", "html"]


def test_a_claim_that_is_gone_is_an_error_and_no_pod_is_made(kubectl: FakeKubectl) -> None:
    kubectl.answer("persistentvolumeclaims", output=b"")
    with pytest.raises(UsageError, match="found none of numbers-workspace, models"):
        read_kept(Kubectl(), job(), ["html"], image=None, seconds=9)
    assert not kubectl.given()


def test_an_image_that_cannot_read_is_named_with_the_remedy(kubectl: FakeKubectl) -> None:
    serve(kubectl, b"finetune-trainer: error: invalid choice: 'kept'\n")
    with pytest.raises(UsageError, match=r"invalid choice.*another trainer image with --image"):
        read_kept(Kubectl(), job(), ["html"], image="old", seconds=9)


def test_the_image_comes_from_a_pod_or_the_status() -> None:
    assert image_of(job(), [pod()]) == "registry.example/trainer:2"
    assert image_of(job(), []) == IMAGE
    assert image_of({"status": {}}, []) is None


def test_only_a_running_pod_with_the_claim_binds_the_reader_to_its_node() -> None:
    assert node_of([pod(phase="Succeeded"), pod(phase="Running")], "numbers-workspace") == "node-1"
    assert node_of([pod(phase="Running")], "models") == ""
    assert node_of([pod(phase="Succeeded")], "numbers-workspace") == ""


def test_a_spec_of_a_later_version_is_an_error() -> None:
    with pytest.raises(UsageError, match="use that of the installed CRD"):
        spec_of({"spec": {"model": {"source": {"later": {}}}}})
