"""The operator as a process of its own, with its settings, and its metrics."""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.scale import loop_gaps
from benchmarks.scale.control_plane import ControlPlane, until_holds
from benchmarks.scale.programs import Program, free_ports

LIFTED = {"qps": 5000, "burst": 5000}
"""Limits of the client that no measurement reaches."""
IDLE_CORES = 0.25
"""Cores that an idle operator uses at most: two ticks of the kernel's clock in a tenth of a second."""
IDLE_SECONDS = 1.0
"""Time without work after which the operator counts as idle."""


@dataclass(frozen=True)
class Limits:
    """The operator that a measurement runs: its settings, and its code if it is not that of this folder."""

    name: str
    client: dict[str, int] | None = None
    """The limits of its client; None for its own."""
    workers: int = 8
    sources: Path | None = None
    """The folder with the package of another version."""
    profile: Path | None = None
    """The file into which cProfile writes."""
    gaps: Path | None = None
    """The file into which the gaps of its event loop are written."""
    namespaces: tuple[str, ...] = ()
    """The only namespaces that it serves, each with lists and watches of its own."""

    def command(self) -> list[str]:
        """How to start it."""
        profiler = [] if self.profile is None else ["-m", "cProfile", "-o", str(self.profile)]
        program = ["-m", "finetune_operator"] if self.gaps is None else [loop_gaps.__file__, str(self.gaps)]
        return [sys.executable, *profiler, *program]

    def environment(self) -> dict[str, str]:
        """Variables that choose its code."""
        if self.sources is None:
            return {}
        return {"PYTHONPATH": os.pathsep.join([str(self.sources), os.environ.get("PYTHONPATH", "")])}


LIMITS = (Limits("default"), Limits("lifted", LIFTED, workers=32))


class Operator:
    """A running operator."""

    def __init__(self, plane: ControlPlane, limits: Limits, name: str = "operator") -> None:
        """Start it. `name` distinguishes its log from those of other operators of this control plane."""
        self.metrics_port, self.health_port = free_ports(2)
        settings = plane.folder / f"{name}.json"
        settings.write_text(json.dumps(self._settings(limits)))
        environment = {
            "KUBECONFIG": str(plane.kubeconfig("operator")),
            "FINETUNE_OPERATOR_SETTINGS": str(settings),
            "POD_NAME": name,
            "POD_NAMESPACE": "default",
            **limits.environment(),
        }
        self.program = Program(name, limits.command(), plane.folder, environment)
        self._plane = plane

    def _settings(self, limits: Limits) -> dict[str, Any]:
        return {
            "trainer": {"image": "registry.example/trainer:1"},
            **({} if limits.client is None else {"client": limits.client}),
            "workers": limits.workers,
            "watchNamespaces": list(limits.namespaces),
            "metricsPort": self.metrics_port,
            "healthPort": self.health_port,
            "logLevel": "WARNING",
            # A machine whose cores are all busy may not run the renewals in time.
            "leaderElection": {"enabled": False},
        }

    def scrape(self) -> str:
        """The text of its metrics."""
        return _get(f"http://127.0.0.1:{self.metrics_port}/metrics")

    def series(self) -> dict[str, float]:
        """The sum of each of its own series over all labels, without those of single jobs."""
        found: dict[str, float] = {}
        kept = "\n".join(line for line in self.scrape().splitlines() if not line.startswith("finetunejob_"))
        for family in text_string_to_metric_families(kept):
            for sample in family.samples:
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
        return found

    def writes(self) -> dict[str, int]:
        """Requests so far by method, without those that only read."""
        found: dict[str, int] = {}
        for family in text_string_to_metric_families(self.scrape()):
            for sample in family.samples:
                method = sample.labels.get("method", "GET")
                if sample.name == "rest_client_requests_total" and method != "GET":
                    found[method] = found.get(method, 0) + int(sample.value)
        return found

    def phases(self) -> dict[str, int]:
        """The number of jobs by phase."""
        found: dict[str, int] = {}
        for line in self.scrape().splitlines():
            if line.startswith("finetunejobs{phase="):
                found[line.split('"')[1]] = int(float(line.split()[-1]))
        return found

    def await_ready(self, seconds: float) -> None:
        """Wait until it leads."""
        until_holds(self._is_ready, "the operator", [self.program, *self._plane.programs], seconds)

    def await_filled(self, seconds: float) -> None:
        """Wait until it knows all FineTuneJobs. A version without the series knows them when it leads."""
        deadline = time.monotonic() + seconds
        while self.series().get("finetune_operator_store_filled", 1.0) != 1.0:
            # A scrape costs CPU time, too, so it is a rare one.
            time.sleep(1)
            self._plane.check()
            self.program.check()
            if time.monotonic() > deadline:
                raise TimeoutError(f"the store must be filled within {seconds:.0f} s; see {self.program.log}")

    def await_idle(self, seconds: float) -> float:
        """Wait until it leads, has no key to work on and uses no CPU; returns the seconds since this call until then."""
        began = time.monotonic()
        quiet: float | None = None
        used, sampled = self.program.cpu_seconds, began
        while True:
            time.sleep(0.1)
            self._plane.check()
            self.program.check()
            now = time.monotonic()
            # A busy machine wakes this process late, and the operator may have used its share of all that time.
            share = (self.program.cpu_seconds - used) / (now - sampled)
            busy = share > IDLE_CORES or not self._is_idle()
            # The scrape has cost CPU time of its own. With a thousand jobs, that would look like work for minutes.
            used, sampled = self.program.cpu_seconds, time.monotonic()
            if busy:
                quiet = None
            elif quiet is None:
                quiet = now
            elif now - quiet >= IDLE_SECONDS:
                return quiet - began
            if now - began > seconds:
                raise TimeoutError(
                    f"the operator must be idle within {seconds:.0f} s; see {self.program.log}"
                )

    def _is_ready(self) -> bool:
        try:
            _get(f"http://127.0.0.1:{self.health_port}/readyz")
        except OSError:
            return False
        return True

    def _is_idle(self) -> bool:
        if not self._is_ready():
            return False
        try:
            found = self.series()
        except OSError:
            return False
        return found["workqueue_depth"] + found["controller_runtime_active_workers"] == 0


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as response:  # noqa: S310 -- a URL of this module
        text: str = response.read().decode()
        return text


@contextmanager
def operating(plane: ControlPlane, limits: Limits, name: str = "operator") -> Iterator[Operator]:
    """An operator for the duration of a `with` block."""
    operator = Operator(plane, limits, name)
    try:
        yield operator
    finally:
        operator.program.stop()
