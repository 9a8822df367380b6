"""kwok's configuration: pods of the three stages run and end as with a real trainer, without containers.

A pod has no address, so the operator does not poll it for progress.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from devcluster.layout import REPOSITORY

from tests.support.operator import CONFIG

FIXTURES = REPOSITORY / "contract" / "fixtures"
STAGES = ("prepare", "train", "merge")
_OWN = ("uid", "attempt", "startTime", "completionTime")
"""Members of a result that differ between pods."""

_RUNNING = """\
{{ $now := dateInZone "2006-01-02T15:04:05Z" now "UTC" }}
phase: Running
startTime: {{ $now | Quote }}
conditions:
- {type: PodScheduled, status: "True", lastTransitionTime: {{ $now | Quote }}}
- {type: Initialized, status: "True", lastTransitionTime: {{ $now | Quote }}}
- {type: ContainersReady, status: "True", lastTransitionTime: {{ $now | Quote }}}
- {type: Ready, status: "True", lastTransitionTime: {{ $now | Quote }}}
containerStatuses:
{{ range .spec.containers }}
- {name: {{ .name | Quote }}, image: {{ .image | Quote }}, imageID: "", ready: true, started: true, restartCount: 0,
   state: {running: {startedAt: {{ $now | Quote }}}}}
{{ end }}
"""

_ENDED = """\
{{ $now := dateInZone "2006-01-02T15:04:05Z" now "UTC" }}
{{ $run := index .metadata.annotations "finetune.dev/run" | fromJson }}
{{ $own := dict "uid" $run.job.uid "attempt" $run.attempt "startTime" .status.startTime "completionTime" $now }}
{{ $message := merge $own (`RESULT` | fromJson) | toJson }}
phase: Succeeded
conditions:
- {type: PodScheduled, status: "True", lastTransitionTime: {{ .status.startTime | Quote }}}
- {type: Ready, status: "False", reason: PodCompleted, lastTransitionTime: {{ $now | Quote }}}
- {type: ContainersReady, status: "False", reason: PodCompleted, lastTransitionTime: {{ $now | Quote }}}
containerStatuses:
{{ range .spec.containers }}
- {name: {{ .name | Quote }}, image: {{ .image | Quote }}, imageID: "", ready: false, started: false, restartCount: 0,
   state: {terminated: {exitCode: 0, reason: Completed, startedAt: {{ $now | Quote }}, finishedAt: {{ $now | Quote }},
   message: {{ $message | Quote }}}}}
{{ end }}
"""


def result_of(stage: str) -> dict[str, Any]:
    """The result of a stage that succeeded, without the members that differ between pods."""
    document: dict[str, Any] = json.loads((FIXTURES / f"result.{stage}-succeeded.json").read_text())
    if stage == "prepare":
        document["prepare"]["model"]["config"] = CONFIG
        document["version"] = "1.2"
    return {name: value for name, value in document.items() if name not in _OWN}


def configuration(seconds: float, train_seconds: float) -> str:
    """kwok's configuration file. A pod runs `seconds`, and one of TRAIN `train_seconds`, both with a fifth more or less."""
    kwok = {
        "apiVersion": "config.kwok.x-k8s.io/v1alpha1",
        "kind": "KwokConfiguration",
        "options": {"podPlayStageParallelism": 16, "nodePlayStageParallelism": 2},
    }
    documents: list[dict[str, Any]] = [
        kwok,
        _stage("pod-running", _RUNNING, [_phase("Pending"), _lives(), _has_node()]),
    ]
    for stage in STAGES:
        duration = train_seconds if stage == "train" else seconds
        template = _ENDED.replace("RESULT", json.dumps(result_of(stage)))
        selected = [_phase("Running"), _lives(), _label("finetune.dev/stage", stage)]
        documents.append(_stage(f"pod-{stage}-ended", template, selected, duration))
    removal = _stage("pod-deleted", "", [{"key": ".metadata.deletionTimestamp", "operator": "Exists"}])
    removal["spec"]["next"] = {"finalizers": {"empty": False}, "delete": True}
    return "\n---\n".join(json.dumps(document) for document in [*documents, removal, _node()])


def _stage(
    name: str, template: str, selected: list[dict[str, Any]], seconds: float = 0.0, *, kind: str = "Pod"
) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "resourceRef": {"apiGroup": "v1", "kind": kind},
        "selector": {"matchExpressions": selected},
        "next": {"statusTemplate": template},
    }
    if seconds:
        spec["delay"] = {
            "durationMilliseconds": round(800 * seconds),
            "jitterDurationMilliseconds": round(1200 * seconds),
        }
    return {"apiVersion": "kwok.x-k8s.io/v1alpha1", "kind": "Stage", "metadata": {"name": name}, "spec": spec}


def _node() -> dict[str, Any]:
    """Nothing of a node needs to change, because it is created ready; kwok must have a stage for it."""
    never = [{"key": ".metadata.name", "operator": "In", "values": [""]}]
    return _stage("node-none", "phase: Running", never, kind="Node")


def _phase(value: str) -> dict[str, Any]:
    return {"key": ".status.phase", "operator": "In", "values": [value]}


def _label(name: str, value: str) -> dict[str, Any]:
    return {"key": f'.metadata.labels["{name}"]', "operator": "In", "values": [value]}


def _lives() -> dict[str, Any]:
    return {"key": ".metadata.deletionTimestamp", "operator": "DoesNotExist"}


def _has_node() -> dict[str, Any]:
    return {"key": ".spec.nodeName", "operator": "Exists"}


def write_configuration(path: Path, seconds: float, train_seconds: float) -> None:
    """Write the file for `kwok --config`."""
    path.write_text(configuration(seconds, train_seconds) + "\n")
