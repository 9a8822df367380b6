"""The Python client on a real cluster: it submits a job, follows it to its end, and fetches the model through a pod."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from devcluster.kubectl import Kubectl
from finetune_client import Client
from finetune_client.types import FineTuneJobSpec
from kubernetes import config
from kubernetes.client import ApiException

from tests.support.e2e import jobs

pytestmark = pytest.mark.cluster


def spec_of(name: str, **spec: Any) -> FineTuneJobSpec:
    return cast(FineTuneJobSpec, jobs.fine_tune_job(name, **spec)["spec"])


def test_a_notebook_trains_a_model_and_fetches_it(room: Kubectl, tmp_path: Path) -> None:
    assert room.namespace is not None
    api = config.new_client_from_config(str(room.kubeconfig))
    client = Client(room.namespace, api)
    with pytest.raises(ApiException) as misspelled:
        client.submit("notebook", cast(FineTuneJobSpec, {**spec_of("notebook"), "trainning": {}}))
    assert misspelled.value.status == 400
    client.submit("notebook", spec_of("notebook"), dry_run=True)
    assert not client.list("team=search")

    client.submit("notebook", spec_of("notebook"), labels={"team": "search"})
    assert [job["metadata"]["name"] for job in client.list("team=search")] == ["notebook"]
    stages = [progress["stage"] for progress in client.progress("notebook", timeout=300)]
    assert stages == sorted(stages, key=["Prepare", "Train", "Merge"].index)
    assert stages
    job = client.wait("notebook", timeout=60)
    assert {artifact["kind"] for artifact in job["status"]["artifacts"]} >= {"Merged"}

    folder = client.fetch("notebook", tmp_path / "model")
    assert (folder / "config.json").is_file()
    assert (folder / "model.safetensors").stat().st_size > 10_000
    pods = [pod["metadata"]["name"] for pod in room.json("get", "pods")["items"]]
    assert not [name for name in pods if name.startswith("notebook-fetch-")]
    api.rest_client.pool_manager.clear()
    api.close()
