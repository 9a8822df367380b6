"""Rules of the whole suite: a test is skipped only for want of a GPU or of Docker, and says so."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

import pytest
from devcluster.provider import docker_answers

NO_GPU = "needs an NVIDIA GPU, and this machine shows none"
NO_DOCKER = "needs a Docker engine, and none answers"


@cache
def _gpu_is_there() -> bool:
    if not Path("/dev/nvidiactl").exists():
        return False
    return subprocess.run(["nvidia-smi", "-L"], check=False, capture_output=True).returncode == 0


@cache
def _docker_is_there() -> bool:
    return docker_answers()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked `gpu` or `docker` where there is none."""
    if item.get_closest_marker("gpu") and not _gpu_is_there():
        pytest.skip(NO_GPU)
    if item.get_closest_marker("docker") and not _docker_is_there():
        pytest.skip(NO_DOCKER)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run in several processes, those of a file stay together, and those of the cluster in one process.

    A file's tests share what is costly to make; the cluster is one.
    """
    for item in items:
        group = "cluster" if item.get_closest_marker("cluster") else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Turn every other skip into a failure: a test that nobody runs proves nothing."""
    if not report.skipped:
        return
    reason = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not reason.endswith((NO_GPU, NO_DOCKER)):
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} must run or lack a GPU or Docker, it was skipped: {reason}"
