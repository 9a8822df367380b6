from __future__ import annotations

from typing import Any

import pytest
from finetune_operator.api.pod_merge import merge_pods
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.stages import Stage
from finetune_operator.manifests.container_resources import container_resources, fit_scratch
from finetune_operator.settings import TrainerSettings
from finetune_operator.sizing.hosts import HostNeeds

from tests.support.operator import make_spec

GIB = 2**30
HOST = HostNeeds("2", 8 * GIB, "because", 2**28, GIB)


def resources(
    defaults: dict[str, Any], stage: Stage = Stage.PREPARE, *, host: HostNeeds = HOST, **changes: Any
) -> dict[str, Any]:
    trainer_changes = changes.pop("trainer", {})
    trainer = TrainerSettings.model_validate({"image": "i", "podDefaults": defaults, **trainer_changes})
    spec = FineTuneJobSpec.parse(make_spec(**changes))
    pods = merge_pods(trainer.defaults, spec, stage)
    return container_resources(spec, stage, trainer, fit_scratch(host, pods), pods)


def test_without_settings_only_memory_is_limited() -> None:
    assert resources({}) == {
        "requests": {"cpu": "2", "memory": "8Gi", "ephemeral-storage": "1Gi"},
        "limits": {"memory": "8Gi"},
    }


@pytest.mark.parametrize(
    ("limit", "asked", "expected"),
    [
        ("4", {}, ("2", "4")),
        ("4", {"cpu": "3"}, ("3", "4")),
        ("4", {"cpu": "6"}, ("6", "6")),
        ("500m", {}, ("500m", "500m")),
        ("Request", {}, ("2", "2")),
        ("Request", {"cpu": "1500m"}, ("1500m", "1500m")),
        ("2000m", {}, ("2", "2000m")),
    ],
)
def test_a_cpu_limit_lowers_the_operators_request_but_not_the_users(
    limit: str, asked: dict[str, str], expected: tuple[str, str]
) -> None:
    found = resources({"cpuLimit": limit}, resources={"prepare": asked})
    assert (found["requests"]["cpu"], found["limits"]["cpu"]) == expected


def test_a_request_of_the_chart_is_kept_like_one_of_the_user() -> None:
    host = HostNeeds("6", 8 * GIB, "because", 2**28, GIB)
    trainer = {"resources": {"prepare": {"cpu": "6"}}}
    found = resources({"cpuLimit": "4"}, host=host, trainer=trainer)
    assert (found["requests"]["cpu"], found["limits"]["cpu"]) == ("6", "6")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"ephemeralStorage": "3Gi"}, ("3Gi", None)),
        ({"ephemeralStorageLimit": "4Gi"}, ("1Gi", "4Gi")),
        ({"ephemeralStorageLimit": "512Mi"}, ("512Mi", "512Mi")),
        ({"ephemeralStorage": "3Gi", "ephemeralStorageLimit": "Request"}, ("3Gi", "3Gi")),
        ({"ephemeralStorage": "3Gi", "ephemeralStorageLimit": "2Gi"}, ("3Gi", "3Gi")),
    ],
)
def test_local_disk_has_the_request_and_limit_that_are_set(
    given: dict[str, str], expected: tuple[str, str | None]
) -> None:
    found = resources(given)
    name = "ephemeral-storage"
    assert (found["requests"][name], found["limits"].get(name)) == expected


def test_the_temporary_folder_is_as_large_as_the_request() -> None:
    trainer = TrainerSettings.model_validate({"image": "i", "podDefaults": {"ephemeralStorage": "5G"}})
    pods = merge_pods(trainer.defaults, FineTuneJobSpec.parse(make_spec()), Stage.PREPARE)
    assert fit_scratch(HOST, pods).scratch_bytes == 5 * 10**9


def test_limits_of_one_stage_leave_the_others_alone() -> None:
    defaults = {"train": {"cpuLimit": "8"}}
    assert resources(defaults, Stage.TRAIN)["limits"] == {"memory": "8Gi", "cpu": "8", "nvidia.com/gpu": "1"}
    assert "cpu" not in resources(defaults, Stage.MERGE)["limits"]


def test_the_jobs_limit_replaces_the_charts() -> None:
    found = resources({"cpuLimit": "8"}, podTemplate={"prepare": {"cpuLimit": 3}})
    assert found["limits"]["cpu"] == "3"
