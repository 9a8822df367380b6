"""The Lua scripts for Argo CD. They run here as in Argo CD: without the standard library, except for iteration."""

from __future__ import annotations

from typing import Any

import lupa
import pytest
import yaml

from tests.support.repository import ROOT

CONFIGURATION = yaml.safe_load((ROOT / "gitops/argocd/argocd-cm.yaml").read_text())["data"]
HEALTH = CONFIGURATION["resource.customizations.health.finetune.dev_FineTuneJob"]
ACTIONS = yaml.safe_load(CONFIGURATION["resource.customizations.actions.finetune.dev_FineTuneJob"])


def to_python(value: Any) -> Any:
    return {key: to_python(item) for key, item in value.items()} if lupa.lua_type(value) == "table" else value


def run(script: str, job: dict[str, Any]) -> dict[str, Any]:
    """Run `script` with `job` as the global `obj` and return its table."""
    lua = lupa.LuaRuntime(unpack_returned_tuples=True)
    lua.execute(
        "for name in pairs(_G) do if name ~= 'ipairs' and name ~= 'pairs' and name ~= '_G' then _G[name] = nil end end"
    )
    lua.globals()["obj"] = lua.table_from(job, recursive=True)
    result: dict[str, Any] = to_python(lua.execute(script))
    return result


def job(
    conditions: dict[str, str], *, generation: int = 1, observed: int | None = 1, suspend: bool = False
) -> dict[str, Any]:
    """Return a FineTuneJob with the given conditions, each with its reason and message."""
    status: dict[str, Any] = {
        "conditions": [
            {"type": name, "status": status, "reason": f"{name}Reason", "message": f"{name} message"}
            for name, status in conditions.items()
        ]
    }
    if observed is not None:
        status["observedGeneration"] = observed
    return {"metadata": {"generation": generation}, "spec": {"suspend": suspend}, "status": status}


ACTIVE = {"Succeeded": "Unknown", "Reconciling": "True", "Stalled": "False", "Suspended": "False"}


@pytest.mark.parametrize(
    ("given", "health", "message"),
    [
        ({"metadata": {"generation": 1}, "spec": {}}, "Progressing", "Waiting for the operator"),
        (job({}, observed=None), "Progressing", "Waiting for the operator"),
        (job({"Succeeded": "True"}, generation=2), "Progressing", "Waiting for the operator"),
        (job(ACTIVE), "Progressing", "Reconciling message"),
        (job(ACTIVE | {"Suspended": "True"}), "Suspended", "Suspended message"),
        (job(ACTIVE | {"Stalled": "True"}), "Degraded", "StalledReason: Stalled message"),
        (
            job({"Succeeded": "True", "Reconciling": "False", "Stalled": "False"}),
            "Healthy",
            "Succeeded message",
        ),
        (job({"Succeeded": "False", "Stalled": "True"}), "Degraded", "SucceededReason: Succeeded message"),
    ],
)
def test_health_follows_the_conditions(given: dict[str, Any], health: str, message: str) -> None:
    assert run(HEALTH, given) == {"status": health, "message": message}


@pytest.mark.parametrize(
    ("given", "suspend_disabled", "resume_disabled"),
    [
        (job(ACTIVE), False, True),
        (job(ACTIVE, suspend=True), True, False),
        (job({"Succeeded": "True"}), True, True),
        (job({"Succeeded": "False"}, suspend=True), True, True),
    ],
)
def test_actions_are_offered_only_if_they_do_something(
    *, given: dict[str, Any], suspend_disabled: bool, resume_disabled: bool
) -> None:
    offered = run(ACTIONS["discovery.lua"], given)
    assert offered == {"suspend": {"disabled": suspend_disabled}, "resume": {"disabled": resume_disabled}}


@pytest.mark.parametrize(("name", "suspend"), [("suspend", True), ("resume", False)])
def test_actions_change_suspend_alone(*, name: str, suspend: bool) -> None:
    scripts = {action["name"]: action["action.lua"] for action in ACTIONS["definitions"]}
    before = job({}, suspend=not suspend)
    after = run(scripts[name], before)
    assert after["spec"] == {"suspend": suspend}
    assert after["metadata"] == before["metadata"]


def test_progress_does_not_refresh_applications() -> None:
    ignored = CONFIGURATION["resource.customizations.ignoreResourceUpdates.finetune.dev_FineTuneJob"]
    assert yaml.safe_load(ignored) == {"jsonPointers": ["/status/progress"]}


def test_applications_install_the_chart_before_the_jobs() -> None:
    operator, jobs = yaml.safe_load_all((ROOT / "gitops/argocd/applications.yaml").read_text())
    assert (ROOT / operator["spec"]["source"]["path"] / "Chart.yaml").exists()
    assert operator["metadata"]["annotations"]["argocd.argoproj.io/sync-wave"] == "-1"
    assert "ServerSideApply=true" in operator["spec"]["syncPolicy"]["syncOptions"]
    assert "SkipDryRunOnMissingResource=true" in jobs["spec"]["syncPolicy"]["syncOptions"]
