"""The alerts of the chart, as promtool judges them on series of jobs and operators."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.docs.metrics_catalog import operator_entries
from tests.support.chart import only, render
from tests.support.repository import ROOT

pytestmark = pytest.mark.prometheus
JOB = {"namespace": "team", "name": "demo"}
OTHER_JOB = {"namespace": "team", "name": "other"}
OLD, NEW = {"pod": "operator-0"}, {"pod": "operator-1"}
FAILED = {"phase": "Failed", "reason": "InvalidDataset"}
STALLED = {"phase": "Stalled", "reason": "DoesNotFit"}
HEARTBEAT = "finetunejob_heartbeat_timestamp_seconds"
WAIT = "finetunejob_wait_start_timestamp_seconds"
SAVED = "finetunejob_last_checkpoint_timestamp_seconds"
ENDED = "finetunejob_gpu_pod_ended_timestamp_seconds"
REASON = "finetunejob_status_reason"
RATIO = "finetunejob_memory_ratio"
LEADER = "leader_election_master_status"
UP = "finetune_operator_health_problems"
LEASE = {"name": "finetune-operator"}
LIVENESS = {"probe": "liveness"}


def series(name: str, values: str, *labels: dict[str, str]) -> dict[str, str]:
    """One input series of promtool, with a value for each minute."""
    joined = {key: value for each in labels for key, value in each.items()}
    text = ",".join(f'{key}="{value}"' for key, value in joined.items())
    return {"series": f"{name}{{{text}}}", "values": values}


@dataclass(frozen=True)
class Case:
    """A history by the minute, and at which minutes an alert fires with which labels."""

    alert: str
    history: list[dict[str, str]]
    firing: dict[int, list[dict[str, str]]]
    id: str = field(default="")


CASES = (
    Case(
        "FineTuneJobFailed",
        [
            series(REASON, "_ _ 1x10 stale", OLD, JOB, FAILED),
            series(REASON, "1x60", OTHER_JOB, {"phase": "Succeeded"}),
        ],
        {1: [], 2: [JOB | {"reason": "InvalidDataset"}], 12: [JOB | {"reason": "InvalidDataset"}], 13: []},
        "fires from the end of a job until its series end",
    ),
    Case(
        "FineTuneJobFailed",
        [
            series(REASON, "1x5 stale", OLD, JOB, FAILED),
            series(REASON, "_x5 1x10", NEW, JOB, FAILED),
        ],
        {minute: [JOB | {"reason": "InvalidDataset"}] for minute in (3, 5, 6, 7, 10)},
        "is the same alert after a failover",
    ),
    Case(
        "FineTuneJobFailed",
        [series(REASON, "1x60", OLD, JOB, {"phase": "Training", "reason": "Training"})],
        {30: []},
        "does not fire for a job that runs",
    ),
    Case(
        "FineTuneNoProgress",
        [series(HEARTBEAT, "0x60", OLD, JOB), series(HEARTBEAT, "0+60x60", OLD, OTHER_JOB)],
        {30: [], 32: [JOB], 60: [JOB]},
        "fires for the trainer that stands still",
    ),
    Case(
        "FineTuneNoProgress",
        [series(HEARTBEAT, "0x40 stale", OLD, JOB), series(HEARTBEAT, "_x40 0x20", NEW, JOB)],
        {39: [JOB], 40: [JOB], 41: [JOB], 45: [JOB]},
        "goes on after a failover, because the time is the trainer's",
    ),
    Case(
        "FineTuneNoProgress",
        [series(HEARTBEAT, "0x40 stale", OLD, JOB)],
        {40: [JOB], 41: []},
        "ends with the pod or with the job",
    ),
    Case(
        "FineTuneNoProgress",
        [series(HEARTBEAT, "0x20 _x30 3000+60x20", OLD, JOB)],
        {19: [], 35: [], 50: [], 60: []},
        "does not fire after a restart of the operator",
    ),
    Case(
        "FineTuneWaitingForGpuTooLong",
        [series(WAIT, "0x100 stale", OLD, JOB), series(WAIT, "0x30 stale", OLD, OTHER_JOB)],
        {59: [], 62: [JOB], 100: [JOB], 101: []},
        "fires after an hour until the wait ends",
    ),
    Case(
        "FineTuneWaitingForGpuTooLong",
        [series(WAIT, "0x70 stale", OLD, JOB), series(WAIT, "_x70 0x20", NEW, JOB)],
        {70: [JOB], 71: [JOB], 75: [JOB]},
        "goes on after a failover, because the time is in the status",
    ),
    Case(
        "FineTuneLossNotANumber",
        [
            series(REASON, "_ 1x10 stale", OLD, JOB, {"phase": "Failed", "reason": "NonFiniteLoss"}),
            series(REASON, "1x20", OLD, OTHER_JOB, FAILED),
        ],
        {0: [], 1: [JOB], 12: []},
        "fires for that reason alone",
    ),
    Case(
        "FineTuneJobStalled",
        [
            series(REASON, "1x3 stale", OLD, OTHER_JOB, STALLED),
            series(REASON, "_ 1x10 stale", OLD, JOB, STALLED),
        ],
        {5: [], 6: [JOB | {"reason": "DoesNotFit"}], 11: [JOB | {"reason": "DoesNotFit"}], 12: []},
        "fires if a job stays stalled",
    ),
    Case(
        "FineTuneJobSucceeded",
        [
            series(REASON, "_ 1x10 stale", OLD, JOB, {"phase": "Succeeded", "reason": "Completed"}),
            series(REASON, "1x60", OLD, OTHER_JOB, FAILED),
        ],
        {0: [], 1: [JOB], 11: [JOB], 12: []},
        "fires from the end of a job until its series end",
    ),
    Case(
        "FineTuneCheckpointStale",
        [series(SAVED, "0x150", OLD, JOB), series(SAVED, "0x100 6000x50", OLD, OTHER_JOB)],
        {119: [], 123: [JOB], 150: [JOB]},
        "fires if no checkpoint follows",
    ),
    Case(
        "FineTuneCheckpointStale",
        [series(SAVED, "0x100 stale", OLD, JOB)],
        {150: []},
        "does not fire after the last step",
    ),
    Case(
        "FineTuneMemoryEstimateOff",
        [series(RATIO, "1.2x10", OLD, JOB), series(RATIO, "0.9x10", OLD, OTHER_JOB)],
        {5: [JOB]},
        "fires above the estimate",
    ),
    Case(
        "FineTuneMemoryEstimateOff",
        [series(RATIO, "0.3x10 stale", OLD, JOB)],
        {5: [JOB], 11: []},
        "fires far below the estimate until the series end",
    ),
    Case(
        "FineTuneGpuPodLingering",
        [series(ENDED, "_ 60x9 stale", OLD, JOB), series(ENDED, "_ 60 stale", OLD, OTHER_JOB)],
        {3: [], 5: [JOB], 10: [JOB], 11: []},
        "fires while the pod of an ended trainer stays",
    ),
    Case(
        "FineTuneOperatorDown",
        [series(UP, "0x10 stale", OLD, LIVENESS)],
        {10: [], 15: [], 16: [LIVENESS], 60: [LIVENESS]},
        "fires five minutes after the last replica",
    ),
    Case(
        "FineTuneOperatorDown",
        [series(UP, "0x10 stale", OLD, LIVENESS), series(UP, "_x13 0x30", NEW, LIVENESS)],
        {minute: [] for minute in (10, 12, 14, 17, 30)},
        "does not fire while a replica is replaced",
    ),
    Case(
        "FineTuneOperatorDown",
        [series(UP, "0x10 stale", OLD, LIVENESS), series(UP, "0x60", NEW, LIVENESS)],
        {30: []},
        "does not fire while one of two replicas runs",
    ),
    Case(
        "FineTuneOperatorNotLeading",
        [series(LEADER, "1x5 0x20", OLD, LEASE), series(LEADER, "0x25", NEW, LEASE)],
        {5: [], 8: [], 9: [LEASE], 20: [LEASE]},
        "fires if all replicas stand by",
    ),
    Case(
        "FineTuneOperatorNotLeading",
        [series(LEADER, "1x5 stale", OLD, LEASE), series(LEADER, "0x6 1x20", NEW, LEASE)],
        {minute: [] for minute in (5, 6, 7, 10, 20)},
        "does not fire in a failover",
    ),
)


@cache
def rules() -> dict[str, Any]:
    spec: dict[str, Any] = only(
        render("--set", "prometheusRule.enabled=true,prometheusRule.succeeded=true"), "PrometheusRule"
    )["spec"]
    return spec


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for group in rules()["groups"] for rule in group["rules"]}


def promtool(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def rule_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rules") / "rules.yaml"
    path.write_text(yaml.safe_dump(rules()))
    return path


def test_promtool_accepts_the_rules(rule_file: Path) -> None:
    promtool("check", "rules", str(rule_file))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert} {case.id}".replace(" ", "-"))
def test_an_alert_fires_when_it_should_and_at_no_other_time(
    case: Case, rule_file: Path, tmp_path: Path
) -> None:
    alert = alerts()[case.alert]
    expected = [
        {
            "eval_time": f"{minute}m",
            "alertname": case.alert,
            "exp_alerts": [
                {"exp_labels": {**labels, **alert["labels"]}, "exp_annotations": {}} for labels in firing
            ],
        }
        for minute, firing in case.firing.items()
    ]
    # promtool compares annotations, too; their texts are checked below.
    bare = {
        "groups": [
            {**group, "rules": [{**rule, "annotations": {}} for rule in group["rules"]]}
            for group in yaml.safe_load(rule_file.read_text())["groups"]
        ]
    }
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(bare))
    test = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": "1m",
        "tests": [
            {"interval": "1m", "input_series": case.history, "alert_rule_test": [each]} for each in expected
        ],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(test))
    promtool("test", "rules", str(tmp_path / "test.yaml"))


def test_each_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    for alert in alerts():
        states = {bool(firing) for case in CASES if case.alert == alert for firing in case.firing.values()}
        assert states == {True, False}, alert


def test_each_alert_says_what_it_is_about_and_links_a_section_that_exists() -> None:
    headings = re.findall(r"^## (\S+)$", (ROOT / "docs/alerts.md").read_text(), flags=re.MULTILINE)
    assert list(alerts()) == [name for name in headings if name in alerts()]
    for name, rule in alerts().items():
        assert rule["labels"]["severity"] in {"info", "warning", "critical"}
        annotations = rule["annotations"]
        with_remedy = {"remedy"} if name in {"FineTuneJobFailed", "FineTuneJobStalled"} else set()
        assert annotations.keys() == {"summary", "description", "runbook_url"} | with_remedy
        assert annotations["runbook_url"].partition("#")[2] == name.lower()
        assert "%!" not in str(annotations)


def test_alerts_use_only_series_that_the_operator_has() -> None:
    known = {entry.name for entry in operator_entries()}
    for rule in alerts().values():
        used = set(re.findall(r"\b(?:finetune\w+|leader_election\w+)", re.sub(r'"[^"]*"', "", rule["expr"])))
        assert used
        assert used <= known


def test_an_operator_without_an_election_has_no_alert_about_its_lease() -> None:
    one = render("--set", "prometheusRule.enabled=true,replicas=1,leaderElection.enabled=false")
    names = [
        rule["alert"] for group in only(one, "PrometheusRule")["spec"]["groups"] for rule in group["rules"]
    ]
    assert "FineTuneOperatorNotLeading" not in names
    assert "FineTuneOperatorDown" in names


def test_the_alert_of_successes_is_off_by_default() -> None:
    rule = only(render("--set", "prometheusRule.enabled=true"), "PrometheusRule")
    assert "FineTuneJobSucceeded" not in str(rule)
