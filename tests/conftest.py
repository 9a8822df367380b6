"""Rules of the whole suite: a test may skip itself only if it lacks a GPU or Docker, and property tests are reproducible."""

from __future__ import annotations

import os
import subprocess
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from devcluster.provider import Provider, choose, docker_answers
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from tests.support.faults import FAULT_MATRIX
from tests.support.kernels import share_kernels

share_kernels(os.environ)  # before any test imports numba, which reads the variable once

NO_GPU = "needs an NVIDIA GPU, and this machine shows none"
NO_DOCKER = "needs a Docker engine, and none answers"

# A busy machine misses any deadline. A failure prints what repeats it; continuous integration always draws the same examples.
settings.register_profile("local", deadline=None, print_blob=True)
settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@cache
def _gpu_is_there() -> bool:
    if not Path("/dev/nvidiactl").exists():
        return False
    return subprocess.run(["nvidia-smi", "-L"], check=False, capture_output=True).returncode == 0


@cache
def _docker_is_there() -> bool:
    return docker_answers()


# A test with one of these markers is in no `make unit`: it needs root, Go, a cluster, Docker, a real model, Prometheus, or time.
_BEYOND_UNIT = ("cluster", "docker", "full", "loaders", "model", "object_stores", "prometheus", "slow")


def _tier(item: pytest.Item) -> str:
    """The first of the tiers `unit`, `test` and `full` that runs a test."""
    if item.get_closest_marker("full"):
        return "full"
    return "test" if any(map(item.get_closest_marker, _BEYOND_UNIT)) else "unit"


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Add the markers that follow from fixtures and from other markers.

    `model` for what loads the real model, `unit`, and `devcluster` for what needs that cluster's StorageClasses.
    """
    for item in items:
        if "real_model" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.model)
        tier = _tier(item)
        item.user_properties.append(("tier", tier))
        if tier == "unit":
            item.add_marker(pytest.mark.unit)
        if "volume_classes" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.devcluster)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked `gpu` or `docker` if there is none."""
    if item.get_closest_marker("gpu") and not _gpu_is_there():
        pytest.skip(NO_GPU)
    if item.get_closest_marker("docker") and not _docker_is_there():
        pytest.skip(NO_DOCKER)


# These start clusters of their own, or none, so they can run beside the tests of the shared cluster.
OWN_CLUSTER = ("tests/e2e/test_devcluster.py", "tests/e2e/test_quickstart_local.py")
# The dev cluster starts in seconds, so these files share a second one. The two parts take about the same time.
SECOND_CLUSTER = tuple(
    f"tests/e2e/test_{name}.py"
    for name in (
        "mistral",
        "model_cache",
        "operator_api",
        "placement",
        "pod_departure",
        "pod_policies",
        "quickstart",
    )
)


def shared_cluster(file: str, provider: Provider) -> str | None:
    """Name the shared cluster on which the tests of a file run, one file after the other; None if they need none."""
    if not file.startswith("tests/e2e/") or file in OWN_CLUSTER:
        return None
    second = provider is Provider.DEVCLUSTER and file in SECOND_CLUSTER
    return "second shared cluster" if second else "shared cluster"


class _ByFile(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no type information
    """Keeps the tests of one file together, because they share costly fixtures, and the tests of a shared cluster."""

    def __init__(self, config: pytest.Config, log: Any) -> None:
        super().__init__(config, log)
        self._provider = choose(os.environ, docker=_docker_is_there())

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return shared_cluster(file, self._provider) or file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _ByFile:
    """Spread tests over processes by `_ByFile` (xdist's own groups do not work with pytest 9.2)."""
    return _ByFile(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Turn every other skip into a failure: a test that nobody runs proves nothing."""
    if not report.skipped:
        return
    reason = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not reason.endswith((NO_GPU, NO_DOCKER)):
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} must run or lack a GPU or Docker, it was skipped: {reason}"


_STARTED = time.time()


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the fault matrix if this run has made one, even if a process of its own did."""
    if FAULT_MATRIX.exists() and FAULT_MATRIX.stat().st_mtime >= _STARTED:
        terminalreporter.section("fault matrix")
        terminalreporter.write_line(FAULT_MATRIX.read_text("utf-8"))
