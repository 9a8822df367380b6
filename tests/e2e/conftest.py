"""Fixtures of the tests that need a Kubernetes cluster; `devcluster.provider` selects the cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from devcluster import product
from devcluster.gpus import Gpus, set_gpus_by_kubectl
from devcluster.kubectl import Kubectl
from devcluster.pretend_nodes import PretendNodes
from devcluster.provider import ProvidedCluster, provided_cluster

from tests.support.e2e import jobs, quickstart
from tests.support.e2e.namespaces import fresh_namespace
from tests.support.e2e.pretend_gpus import PretendGpus, pretend_gpus
from tests.support.e2e.tiny_runs import TinyRuns, run_tiny_jobs


@pytest.fixture(scope="session")
def cluster() -> Iterator[ProvidedCluster]:
    """The cluster of this test run: `kubeconfig`, `operator_image`, `trainer_image`."""
    with provided_cluster(f"test-{os.getpid()}") as provided:
        yield provided


@pytest.fixture(scope="session")
def kubectl(cluster: ProvidedCluster) -> Kubectl:
    """Kubectl with the identity of the cluster's administrator."""
    return Kubectl(cluster.kubeconfig)


@pytest.fixture
def namespace(kubectl: Kubectl) -> Iterator[str]:
    """A fresh namespace that enforces the restricted Pod Security level, deleted at the end."""
    with fresh_namespace(kubectl) as name:
        yield name


@pytest.fixture
def gpus(kubectl: Kubectl) -> Iterator[Callable[[Gpus], None]]:
    """Set the pretend GPUs of the cluster's first node; the default two are restored at the end."""
    yield lambda wanted: set_gpus_by_kubectl(kubectl, wanted)
    set_gpus_by_kubectl(kubectl, Gpus())


@pytest.fixture
def pretend_nodes(cluster: ProvidedCluster) -> Iterator[PretendNodes]:
    """Additional nodes without a kubelet for the duration of a test."""
    with PretendNodes(cluster.kubeconfig) as nodes:
        yield nodes


@pytest.fixture(scope="session")
def operator(cluster: ProvidedCluster) -> ProvidedCluster:
    """The cluster with the operator, installed from its chart."""
    product.install_chart(cluster)
    return cluster


@pytest.fixture(scope="module")
def private_addresses(operator: ProvidedCluster) -> Iterator[None]:
    """Let PREPARE fetch from private addresses, such as a pod's, while the tests of a module run."""
    product.install_chart(operator, {"trainer": {"limits": {"allowPrivateAddresses": True}}})
    yield
    product.install_chart(operator)


@pytest.fixture(scope="session")
def tiny_assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random model and a folder without a model."""
    folder = tmp_path_factory.mktemp("assets")
    jobs.write_tiny_model(folder / "models" / "tiny", quickstart.BASE_MODEL)
    (folder / "models" / "not-a-model").mkdir()
    (folder / "models" / "not-a-model" / "README.txt").write_text("no model here\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def workplace(operator: ProvidedCluster, kubectl: Kubectl, tiny_assets: Path) -> Iterator[Kubectl]:
    """Kubectl in the namespace of most tests: claim `assets` contains the tiny model, ConfigMap `data` the rows."""
    with fresh_namespace(kubectl) as name:
        scoped = kubectl.within(name)
        scoped.apply(product.claim(jobs.CLAIM, "1Gi"))
        with product.volume_pod(scoped, jobs.CLAIM, operator.trainer_image) as pod:
            product.fill_volume(scoped, pod, tiny_assets)
        scoped.apply(jobs.config_map("data", jobs.jsonl(jobs.conversations(24))))
        yield scoped


@pytest.fixture
def settled(workplace: Kubectl) -> Iterator[Kubectl]:
    """`workplace`, whose FineTuneJobs are deleted after each test. What a module has put there stays."""
    yield workplace
    workplace("delete", "finetunejobs", "--all", "--wait=true")


@pytest.fixture
def room(workplace: Kubectl) -> Iterator[Kubectl]:
    """The shared namespace for one test; its FineTuneJobs and pods are deleted afterwards, but servers stay."""
    yield workplace
    workplace("delete", "finetunejobs", "--all", "--wait=true")
    workplace("delete", "pods", f"--selector=!{jobs.SERVER_LABEL}", "--grace-period=1", "--wait=true")


@pytest.fixture(scope="session")
def tiny_runs(workplace: Kubectl) -> TinyRuns:
    """A job that completed all stages and one that failed in the first, watched until their pods are deleted."""
    return run_tiny_jobs(workplace)


@pytest.fixture(scope="session")
def volume_classes(kubectl: Kubectl) -> None:
    """Require the StorageClasses `shared` and `zonal`, which only the dev cluster has."""
    if kubectl.run("get", "storageclass", "shared", "zonal").returncode != 0:
        pytest.skip("this cluster has no StorageClasses `shared` and `zonal`")


@pytest.fixture(scope="session")
def sizes(tiny_assets: Path) -> PretendGpus:
    """GPUs that are too small, small and large for training the tiny model."""
    return pretend_gpus(tiny_assets / "models" / "tiny")
