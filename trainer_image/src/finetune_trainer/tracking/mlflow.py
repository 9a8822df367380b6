"""Records a run in MLflow through its REST API (version 2.0 of the API, which MLflow 2 and 3 serve).

The run is found by its tag, what is there already is not sent again, and a last tag says that the record is complete.
So the record can be sent again after a kill or an outage at any point: there is one run for each FineTuneJob, and no value
twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from finetune_trainer.contract.bounds import MAXIMUM_REASON, shorten
from finetune_trainer.contract.tracking import MLFLOW, TrackingResult
from finetune_trainer.errors import StageError
from finetune_trainer.sources.retry import Outage
from finetune_trainer.tracking.client import TrackerClient

if TYPE_CHECKING:
    from pathlib import Path

    from finetune_trainer.contract.tracking import MlflowTracker
    from finetune_trainer.tracking.record import Metric, Model, Record

MLFLOW_KEYS = "MLFLOW_TRACKING_"
"""Keys of the Secret begin like the variables that MLflow's own client reads."""
_API = "/api/2.0/mlflow"
_ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
_RECORDED = "finetune.recorded"
"""Tag with the digest of a record that is complete."""
_BATCH_METRICS = 500
_BATCH_PARAMETERS = 100
_BATCH_TAGS = 100
_LONGEST_PARAMETER = 500
"""MLflow before 2.10 takes no longer value."""
_LONGEST_TAG = 5000
_MEDIA = {".html": "text/html", ".json": "application/json"}


def record_in_mlflow(
    client: TrackerClient, tracker: MlflowTracker, record: Record, files: Mapping[str, Path]
) -> TrackingResult:
    """Send the record with `files` by name, and register the model; return what MLflow has now.

    Raises StageError if MLflow does not take it.
    """
    return client.retried(lambda: _record(client, tracker, record, files))


def _record(
    client: TrackerClient, tracker: MlflowTracker, record: Record, files: Mapping[str, Path]
) -> TrackingResult:
    experiment = _experiment(client, tracker.experiment)
    run = _run(client, experiment, record)
    identity = str(run["info"]["run_id"])
    notes = []
    data = run.get("data") or {}
    present = {str(each["key"]): str(each["value"]) for each in data.get("tags") or ()}
    if present.get(_RECORDED) != record.digest:
        _log(client, identity, record, data)
        notes.append(_upload(client, str(run["info"].get("artifact_uri") or ""), files))
        state = "FAILED" if record.failed else "FINISHED"
        finished = {"run_id": identity, "status": state, "end_time": record.ended}
        client.post(f"{_API}/runs/update", finished)
        # The tag comes last, because it says that nothing is left to send.
        _set_tags(client, identity, {_RECORDED: record.digest})
    version = None
    if tracker.registered_model is not None and record.model is not None:
        try:
            version = _register(client, tracker.registered_model, identity, record.model)
        except StageError as error:
            # MLflow takes no model in a folder of another machine, for example. The run is whole without it.
            message = shorten(f"the run has no model version: {error.message}", MAXIMUM_REASON)
            return TrackingResult(kind=MLFLOW, recorded=False, run=identity, message=message)
    said = "; ".join(filter(None, notes)) or None
    return TrackingResult(kind=MLFLOW, recorded=True, run=identity, model=version, message=said)


def _experiment(client: TrackerClient, name: str) -> str:
    """Return the id of the experiment, which is made if it is missing. Another job may make it at the same time."""
    for _ in range(2):
        found = client.get(f"{_API}/experiments/get-by-name", experiment_name=name)
        if found is not None:
            described = _member(found, "experiment")
            if described.get("lifecycle_stage") == "deleted":
                raise client.unavailable(f"the deleted experiment {name!r}, which must be restored")
            return str(described["experiment_id"])
        made = client.try_post(f"{_API}/experiments/create", {"name": name})
        if made is not None:
            return str(made["experiment_id"])
    raise client.unavailable(f"an experiment {name!r} that it has and does not show")


def _run(client: TrackerClient, experiment: str, record: Record) -> dict[str, Any]:
    """Return the run of this FineTuneJob, which is made if it is missing."""
    found = client.post(
        f"{_API}/runs/search",
        {
            "experiment_ids": [experiment],
            "filter": f"tags.`finetune.uid` = '{record.uid}'",
            "run_view_type": "ACTIVE_ONLY",
            "max_results": 2,
        },
    )
    runs: list[dict[str, Any]] = found.get("runs") or []
    if runs:
        return runs[0]
    made = client.post(
        f"{_API}/runs/create",
        {
            "experiment_id": experiment,
            "run_name": record.name,
            "start_time": record.started,
            "tags": _pairs({"finetune.uid": record.uid}),
        },
    )
    return _member(made, "run")


def _log(client: TrackerClient, run: str, record: Record, data: Mapping[str, Any]) -> None:
    """Send the parameters, tags and metrics that MLflow lacks."""
    named = {str(each["key"]) for each in data.get("params") or ()}
    parameters = {
        key: value[:_LONGEST_PARAMETER] for key, value in record.parameters.items() if key not in named
    }
    for part in _parts(_pairs(parameters), _BATCH_PARAMETERS):
        client.post(f"{_API}/runs/log-batch", {"run_id": run, "params": part})
    last = {str(each["key"]): int(each.get("step") or 0) for each in data.get("metrics") or ()}
    missing = [metric for metric in record.metrics if metric.step > last.get(metric.key, -1)]
    for part in _parts([_metric(each) for each in missing], _BATCH_METRICS):
        client.post(f"{_API}/runs/log-batch", {"run_id": run, "metrics": part})
    _set_tags(client, run, record.tags)


def _set_tags(client: TrackerClient, run: str, tags: Mapping[str, str]) -> None:
    for part in _parts(_pairs(tags), _BATCH_TAGS):
        client.post(f"{_API}/runs/log-batch", {"run_id": run, "tags": part})


def _metric(metric: Metric) -> dict[str, Any]:
    return {"key": metric.key, "value": metric.value, "step": metric.step, "timestamp": metric.time}


def _upload(client: TrackerClient, uri: str, files: Mapping[str, Path]) -> str | None:
    """Upload the report through MLflow's own artifact proxy; return why that is impossible.

    The trainer has no credentials for a store that MLflow names.
    """
    place = urlsplit(uri)
    if place.scheme != "mlflow-artifacts":
        scheme = place.scheme or "a local folder"
        return f"MLflow keeps artifacts in {scheme} and not behind its own server, so it has no copy of the report"
    for name, path in files.items():
        target = quote(f"{place.path.strip('/')}/report/{name}")
        media = _MEDIA.get(path.suffix, "application/octet-stream")
        client.put_file(f"{_ARTIFACTS}/{target}", path.read_bytes(), media)
    return None


def _register(client: TrackerClient, name: str, run: str, model: Model) -> str:
    """Return NAME/VERSION of the model that this run has in the registry, which gets it if it is missing."""
    if client.get(f"{_API}/registered-models/get", name=name) is None:
        client.try_post(f"{_API}/registered-models/create", {"name": name})
    found = client.get(f"{_API}/model-versions/search", filter=f"name={_quoted(name)} and run_id='{run}'")
    tags = _pairs(model.tags)
    for version in (found or {}).get("model_versions") or ():
        if version.get("source") == model.uri:
            return f"{name}/{version['version']}"
    made = client.post(
        f"{_API}/model-versions/create",
        {"name": name, "source": model.uri, "run_id": run, "tags": tags},
    )
    return f"{name}/{_member(made, 'model_version')['version']}"


def _quoted(name: str) -> str:
    if "'" in name:
        # MLflow's search takes the other kind then. The CRD allows no name with either.
        return f'"{name}"'
    return f"'{name}'"


def _pairs(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value[:_LONGEST_TAG]} for key, value in values.items()]


def _parts(entries: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(entries), size):
        yield entries[start : start + size]


def _member(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = document.get(name)
    if not isinstance(found, dict):
        raise Outage(f"an answer without {name}")
    return found
