"""Hostile FineTuneJobs against a real API server and a running operator: each is refused or settled, and none costs much."""

from __future__ import annotations

from pathlib import Path

import pytest
from devcluster.kubectl import Kubectl

from tests.support.e2e.control_plane import control_plane
from tests.support.e2e.crds import await_established
from tests.support.fuzz.campaign import NAMESPACE, Campaign, campaign
from tests.support.fuzz.operator_run import running_operator
from tests.support.fuzz.subjects import Resources
from tests.support.repository import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.devcluster]

WAVE = 250
WARM_WAVES = 4
"""Until then caches fill and the allocator settles."""
GROWTH_BYTES = 48 << 20
FOUND = (6376,)
"""Seeds that have shown an error: a key with an emoji, which the status names."""
REQUESTS = 40
"""Of the operator for one job and its children: twice what an undisturbed PREPARE and its removal take."""
IDLE_CPU = (0.1, 0.25)
"""Cores of the operator and of the API server while 250 jobs stand still."""


async def run_waves(run: Campaign, number: int) -> None:
    """Send the resources of the first `number` seeds, and those that have shown an error."""
    resources = Resources()
    if late := [resources.make(seed) for seed in FOUND if seed >= number]:
        await run.wave(late)
    for start in range(0, number, WAVE):
        seeds = range(start, min(start + WAVE, number))
        await run.wave([resources.make(seed) for seed in seeds], idle_seconds=0 if start % 1000 else 4)


@pytest.mark.parametrize("number", [250, pytest.param(10_000, marks=pytest.mark.full)])
async def test_every_hostile_resource_is_refused_or_settled_at_little_cost(
    number: int, tmp_path: Path
) -> None:
    with control_plane(tmp_path) as plane:
        kubectl = Kubectl(plane.admin)
        kubectl("apply", "--server-side", f"--filename={ROOT / 'crds/finetunejobs.yaml'}")
        await_established(kubectl)
        kubectl("create", "namespace", NAMESPACE)
        kubectl.within(NAMESPACE)("wait", "serviceaccount/default", "--for=create", "--timeout=60s")
        with running_operator(plane, tmp_path) as operator:
            async with campaign(plane, operator) as run:
                await run_waves(run, number)
                most = run.requests_by_job().most_common(1)[0]
            log = operator.text()
    report = run.report
    print(report.table())
    print(f"{number} resources in {report.seconds:.0f} s; most requests for one job: {most}")
    print("memory of the operator in MiB after each wave:", [size >> 20 for size in report.resident])
    print("idle CPU of operator and API server:", report.idle_cpu)
    assert not report.findings, "\n".join(map(str, report.findings))
    assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:4000]
    assert most[1] <= REQUESTS
    assert all(used <= limit for pair in report.idle_cpu for used, limit in zip(pair, IDLE_CPU, strict=True))
    warm = report.resident[WARM_WAVES:]
    assert not warm or max(warm) - warm[0] <= GROWTH_BYTES
