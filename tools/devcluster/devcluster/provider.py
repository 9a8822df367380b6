"""Provides a cluster for the tests and the demo.

The first match wins: the environment variable CLUSTER (`kind` or `devcluster`); KUBECONFIG, an existing cluster; kind,
if a Docker engine responds; the dev cluster.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from devcluster import cluster, gpus, images
from devcluster.errors import DevClusterError
from devcluster.kubectl import Kubectl
from devcluster.layout import REPOSITORY, Layout

_DOCKER_SECONDS = 10
# Image names that `kind load` loads into kind's nodes, and their sources.
_DOCKERFILES = {
    images.OPERATOR_IMAGE: "operator/Dockerfile",
    images.TRAINER_IMAGE: "trainer_image/Dockerfile",
}


class Provider(Enum):
    """Source of a cluster."""

    GIVEN = "given"
    KIND = "kind"
    DEVCLUSTER = "devcluster"


@dataclass(frozen=True)
class ProvidedCluster:
    """A ready cluster: the administrator's kubeconfig and the names of the product's images on its nodes."""

    kubeconfig: Path
    operator_image: str
    trainer_image: str


def docker_answers() -> bool:
    """Return True if a Docker engine responds on this machine."""
    if shutil.which("docker") is None:
        return False
    command = ["docker", "info", "--format", "{{.ServerVersion}}"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_DOCKER_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    # A client without an engine exits with 0 for some formats, but then prints no version.
    return answer.returncode == 0 and bool(answer.stdout.strip())


def choose(environment: Mapping[str, str], *, docker: bool) -> Provider:
    """Return the provider that `environment` selects; `docker` is True if an engine responds.

    Raises DevClusterError for another value of CLUSTER, or for `kind` without a Docker engine.
    """
    asked = environment.get("CLUSTER", "")
    if asked not in ("", "kind", "devcluster"):
        raise DevClusterError(
            f"CLUSTER must be 'kind' or 'devcluster', found {asked!r}; correct it or unset it"
        )
    if asked == "kind" and not docker:
        raise DevClusterError(
            "CLUSTER=kind needs a Docker engine, but none responds to `docker info`; start Docker, or set CLUSTER=devcluster"
        )
    if asked:
        return Provider(asked)
    if environment.get("KUBECONFIG"):
        return Provider.GIVEN
    return Provider.KIND if docker else Provider.DEVCLUSTER


def _given(environment: Mapping[str, str]) -> ProvidedCluster:
    kubeconfig = Path(environment["KUBECONFIG"]).absolute()
    if not kubeconfig.is_file():
        raise DevClusterError(
            f"KUBECONFIG must name one file that exists, found {environment['KUBECONFIG']!r}"
        )
    found = {}
    for variable in ("FINETUNE_OPERATOR_IMAGE", "FINETUNE_TRAINER_IMAGE"):
        if not environment.get(variable):
            raise DevClusterError(
                f"{variable} must name an image that the nodes of the given cluster can pull, found nothing; "
                "build and push operator/Dockerfile and trainer_image/Dockerfile and set both variables"
            )
        found[variable] = environment[variable]
    return ProvidedCluster(kubeconfig, found["FINETUNE_OPERATOR_IMAGE"], found["FINETUNE_TRAINER_IMAGE"])


def _call(*command: str) -> None:
    print("+ " + " ".join(command), file=sys.stderr, flush=True)
    answer = subprocess.run(command, check=False, cwd=REPOSITORY)
    if answer.returncode != 0:
        raise DevClusterError(
            f"`{' '.join(command)}` must succeed, it ended with {answer.returncode}; see its output above"
        )


@contextmanager
def _kind(name: str) -> Iterator[ProvidedCluster]:
    if shutil.which("kind") is None:
        raise DevClusterError(
            "kind must be on PATH to make a cluster in Docker, found none; install it "
            "(https://kind.sigs.k8s.io), or set CLUSTER=devcluster"
        )
    for image, dockerfile in _DOCKERFILES.items():
        _call("docker", "build", "--tag", image, "--file", dockerfile, ".")
    with tempfile.TemporaryDirectory() as folder:
        kubeconfig = Path(folder) / "kubeconfig"
        try:
            _call(
                "kind", "create", "cluster", "--name", name, "--config", "kind-config.yaml",
                "--kubeconfig", str(kubeconfig), "--wait", "120s",
            )  # fmt: skip
            _call("kind", "load", "docker-image", "--name", name, *_DOCKERFILES)
            gpus.set_gpus_by_kubectl(Kubectl(kubeconfig), gpus.Gpus())
            yield ProvidedCluster(kubeconfig, images.OPERATOR_IMAGE, images.TRAINER_IMAGE)
        finally:
            _call("kind", "delete", "cluster", "--name", name)


@contextmanager
def provided_cluster(name: str, environment: Mapping[str, str] | None = None) -> Iterator[ProvidedCluster]:
    """Provide a cluster for the duration of a `with` block; a new one is named `name` and is removed afterwards.

    The last two kinds of provider create a new cluster. The dev cluster also ends if this process is killed. Raises
    DevClusterError, with the remedy, if no cluster is available.
    """
    settings = os.environ if environment is None else environment
    wants_docker = settings.get("CLUSTER") == "kind" or not (
        settings.get("CLUSTER") or settings.get("KUBECONFIG")
    )
    match choose(settings, docker=wants_docker and docker_answers()):
        case Provider.GIVEN:
            yield _given(settings)
        case Provider.KIND:
            with _kind(name) as made:
                yield made
        case Provider.DEVCLUSTER:
            with cluster.running(Layout(name)) as layout:
                yield ProvidedCluster(layout.kubeconfig, images.OPERATOR_IMAGE, images.TRAINER_IMAGE)
