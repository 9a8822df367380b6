"""The environment selects the cluster of a test run."""

from __future__ import annotations

from pathlib import Path

import pytest
from devcluster.errors import DevClusterError
from devcluster.provider import Provider, choose, provided_cluster


@pytest.mark.parametrize(
    ("environment", "docker", "expected"),
    [
        ({}, False, Provider.DEVCLUSTER),
        ({}, True, Provider.KIND),
        ({"KUBECONFIG": "/some/file"}, True, Provider.GIVEN),
        ({"KUBECONFIG": "/some/file", "CLUSTER": "devcluster"}, True, Provider.DEVCLUSTER),
        ({"KUBECONFIG": "/some/file", "CLUSTER": "kind"}, True, Provider.KIND),
        ({"KUBECONFIG": "", "CLUSTER": ""}, False, Provider.DEVCLUSTER),
    ],
)
def test_choice(environment: dict[str, str], docker: bool, expected: Provider) -> None:  # noqa: FBT001  a column of the table
    assert choose(environment, docker=docker) is expected


@pytest.mark.parametrize(
    ("asked", "message"), [("minikube", "CLUSTER must be 'kind' or 'devcluster'"), ("kind", "start Docker")]
)
def test_an_unavailable_choice_is_an_error_with_its_remedy(asked: str, message: str) -> None:
    with pytest.raises(DevClusterError, match=message):
        choose({"CLUSTER": asked}, docker=False)


def test_a_given_cluster_uses_the_given_image_names(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text("{}")
    environment = {
        "KUBECONFIG": str(kubeconfig),
        "FINETUNE_OPERATOR_IMAGE": "r/o:1",
        "FINETUNE_TRAINER_IMAGE": "r/t:1",
    }
    with provided_cluster("unused", environment) as provided:
        assert (provided.kubeconfig, provided.operator_image, provided.trainer_image) == (
            kubeconfig,
            "r/o:1",
            "r/t:1",
        )


def test_a_given_cluster_without_image_names_is_an_error(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text("{}")
    environment = {"KUBECONFIG": str(kubeconfig), "FINETUNE_OPERATOR_IMAGE": "r/o:1"}
    with (
        pytest.raises(DevClusterError, match="FINETUNE_TRAINER_IMAGE must name an image"),
        provided_cluster("unused", environment),
    ):
        pass


def test_a_given_kubeconfig_must_exist() -> None:
    with (
        pytest.raises(DevClusterError, match="KUBECONFIG must name one file that exists"),
        provided_cluster("unused", {"KUBECONFIG": "/nonexistent/kubeconfig"}),
    ):
        pass
