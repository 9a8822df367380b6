"""The Lua scripts for Argo CD, with a real Lua that has only the libraries of Argo CD.

Its own tests of scripts run here too: health_test.yaml and action_test.yaml have the layout of its repository.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import lupa.lua51 as lupa
import pytest
import yaml
from finetune_cli.jobs.retry import new_job
from finetune_operator.api.conditions import Truth
from finetune_operator.status.condition_table import JobState, conditions_of

from tests.support.crd_schema import root_schema, strict_json_schema
from tests.support.repository import ROOT

FOLDER = ROOT / "gitops/argocd/resource_customizations/finetune.dev/FineTuneJob"
CONFIGURATION = yaml.safe_load((ROOT / "gitops/argocd/argocd-cm.yaml").read_text())["data"]
HEALTH = CONFIGURATION["resource.customizations.health.finetune.dev_FineTuneJob"]
ACTIONS = yaml.safe_load(CONFIGURATION["resource.customizations.actions.finetune.dev_FineTuneJob"])
SCRIPTS = {action["name"]: action["action.lua"] for action in ACTIONS["definitions"]}
LIBRARIES = """
getmetatable("").__index = nil
local time, date = os.time, os.date
local allowed = {os = {time = time, date = date}, table = table}
for _, name in ipairs({"string", "io", "debug", "math", "coroutine", "dofile", "loadfile", "package"}) do
  _G[name] = nil
end
-- Without the string library, strings have no methods either.
os = allowed.os
require = function(name) return allowed[name] or error("no library " .. name) end
"""
HEALTH_TESTS = yaml.safe_load((FOLDER / "health_test.yaml").read_text())["tests"]
ACTION_TESTS = yaml.safe_load((FOLDER / "actions/action_test.yaml").read_text())

Job = dict[str, Any]


def to_python(value: Any) -> Any:
    """Return a Lua value as Python; a table whose keys count from 1 is a list."""
    if lupa.lua_type(value) != "table":
        return value
    items = {key: to_python(item) for key, item in value.items()}
    return list(items.values()) if items and list(items) == list(range(1, len(items) + 1)) else items


def run(script: str, job: Job) -> Any:
    """Run `script` with `job` as the global `obj` and return its result."""
    lua = lupa.LuaRuntime(unpack_returned_tuples=True)
    lua.execute(LIBRARIES)
    lua.globals()["obj"] = lua.table_from(job, recursive=True)
    return to_python(lua.execute(script))


def read(path: Path) -> Job:
    found: Job = yaml.safe_load(path.read_text())
    return found


def job_with(entries: Mapping[str, tuple[str, str, str]], *, generation: int = 1, observed: int = 1) -> Job:
    """A job with conditions, each given as status, reason and message."""
    conditions = [
        {"type": name, "status": status, "reason": reason, "message": message}
        for name, (status, reason, message) in entries.items()
    ]
    return {
        "metadata": {"name": "job", "generation": generation},
        "spec": {},
        "status": {"observedGeneration": observed, "conditions": conditions},
    }


@pytest.mark.parametrize("case", HEALTH_TESTS, ids=lambda case: Path(case["inputPath"]).stem)
def test_health_is_what_argo_cds_own_test_expects(case: dict[str, Any]) -> None:
    assert run(HEALTH, read(FOLDER / case["inputPath"])) == case["healthStatus"]


@pytest.mark.parametrize(
    ("state", "health", "message"),
    [
        (JobState.PROGRESSING, "Progressing", "The message"),
        (JobState.QUEUED, "Progressing", "The message"),
        (JobState.STALLED, "Degraded", "Stalled: TheReason: The message"),
        (JobState.SUSPENDED, "Suspended", "The message"),
        (JobState.COMPLETED, "Healthy", "The message"),
        (JobState.FAILED, "Degraded", "TheReason: The message"),
    ],
)
def test_every_state_that_the_operator_writes_has_its_health(
    state: JobState, health: str, message: str
) -> None:
    entries = {
        entry.condition.value: (Truth(entry.status).value, entry.reason, entry.message)
        for entry in conditions_of(state, "TheReason", "The message")
    }
    assert run(HEALTH, job_with(entries)) == {"status": health, "message": message}
    ended = state in {JobState.COMPLETED, JobState.FAILED}
    of_an_older_spec = run(HEALTH, job_with(entries, generation=2))
    assert of_an_older_spec["status"] == (health if ended else "Progressing")


def test_every_state_of_the_operator_is_tested_above() -> None:
    (marker,) = test_every_state_that_the_operator_writes_has_its_health.pytestmark  # type: ignore[attr-defined]  # pytest adds it
    assert {state for state, _, _ in marker.args[1]} == set(JobState)


@pytest.mark.parametrize(
    "case", ACTION_TESTS["discoveryTests"], ids=lambda case: Path(case["inputPath"]).stem
)
def test_actions_are_offered_only_if_they_do_something(case: dict[str, Any]) -> None:
    offered = run(ACTIONS["discovery.lua"], read(FOLDER / "actions" / case["inputPath"]))
    assert {"name"} | offered.keys() == {"name"} | {each["name"] for each in case["result"]}
    for each in case["result"]:
        assert offered[each["name"]] == {"disabled": each["disabled"], "iconClass": each["iconClass"]}


@pytest.mark.parametrize("case", ACTION_TESTS["actionTests"], ids=lambda case: str(case["action"]))
def test_an_action_changes_suspend_alone(case: dict[str, Any]) -> None:
    before = read(FOLDER / "actions" / case["inputPath"])
    after = run(SCRIPTS[case["action"]], before)
    assert after == read(FOLDER / "actions" / case["expectedOutputPath"])
    assert {**after["spec"], "suspend": None} == {**before["spec"], "suspend": None}


@pytest.mark.parametrize("name", ["failed", "failed_long_name"])
def test_a_retry_is_a_valid_new_job_below_the_failed_one(name: str) -> None:
    failed = read(FOLDER / f"actions/testdata/{name}.yaml")
    failed["spec"] |= {"suspend": False, "training": {}}
    (operation,) = run(SCRIPTS["retry"], failed)
    created, metadata = operation["resource"], operation["resource"]["metadata"]
    assert operation["operation"] == "create"
    assert created["spec"] == {key: failed["spec"][key] for key in created["spec"]}
    assert failed["spec"].keys() - created["spec"].keys() == {"suspend", "training"}
    assert len(metadata["name"]) <= 45
    assert metadata["name"] != failed["metadata"]["name"]
    assert metadata["name"].split("-")[-1][:6] in {
        time.strftime("%y%m%d", time.gmtime(moment)) for moment in (time.time() - 60, time.time())
    }
    (owner,) = metadata["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"]) == (
        "FineTuneJob",
        failed["metadata"]["name"],
        failed["metadata"]["uid"],
    )
    assert "controller" not in owner
    jsonschema.validate(created, strict_json_schema(root_schema()) | {"additionalProperties": True})


@pytest.mark.parametrize(
    "output",
    [
        {"destination": {"persistentVolumeClaim": {"claimName": "models"}}},
        {"destinations": [{"name": "claim", "persistentVolumeClaim": {"claimName": "models"}}]},
    ],
)
def test_a_retry_publishes_where_the_failed_job_would_have(output: dict[str, Any]) -> None:
    failed = read(FOLDER / "actions/testdata/failed.yaml")
    failed["spec"]["output"] = output
    (operation,) = run(SCRIPTS["retry"], failed)
    expected = new_job(failed, "again", ())["spec"]["output"]
    assert operation["resource"]["spec"]["output"] == expected


def test_a_retry_never_tells_the_trackers_of_the_chart_if_the_job_wants_none() -> None:
    failed = read(FOLDER / "actions/testdata/failed.yaml")
    failed["spec"]["tracking"] = {}
    with pytest.raises(lupa.LuaError, match="run: finetune retry support-bot"):
        run(SCRIPTS["retry"], failed)
    failed["spec"]["tracking"] = {"mlflow": {"uri": "https://mlflow.example.com"}}
    (operation,) = run(SCRIPTS["retry"], failed)
    assert operation["resource"]["spec"]["tracking"] == failed["spec"]["tracking"]


def test_argo_cd_does_not_prune_a_retry_and_its_marks_are_not_copied() -> None:
    failed = read(FOLDER / "actions/testdata/failed.yaml")
    ((_, job),) = [tuple(each.values()) for each in run(SCRIPTS["retry"], failed)]
    metadata = (job if isinstance(job, dict) else {})["metadata"]
    assert metadata["labels"] == {"team": "support"}
    assert metadata["annotations"] == {"finetune.dev/retry-of": "support-bot"}


def test_progress_does_not_refresh_applications() -> None:
    ignored = CONFIGURATION["resource.customizations.ignoreResourceUpdates.finetune.dev_FineTuneJob"]
    assert yaml.safe_load(ignored) == {"jsonPointers": ["/status/progress"]}


def test_applications_install_the_chart_before_the_jobs() -> None:
    operator, jobs = yaml.safe_load_all((ROOT / "gitops/argocd/applications.yaml").read_text())
    assert (ROOT / operator["spec"]["source"]["path"] / "Chart.yaml").exists()
    assert operator["metadata"]["annotations"]["argocd.argoproj.io/sync-wave"] == "-1"
    assert "ServerSideApply=true" in operator["spec"]["syncPolicy"]["syncOptions"]
    assert "SkipDryRunOnMissingResource=true" in jobs["spec"]["syncPolicy"]["syncOptions"]
