from __future__ import annotations

from typing import Any

import pytest
from finetune_operator.api.stages import WORK_STAGES, Stage
from finetune_operator.lifecycle.pod_defaults import defaults_digest
from finetune_operator.settings import POD_DEFAULTS, TrainerSettings


def digest(defaults: dict[str, Any], stage: Stage) -> str:
    return defaults_digest(TrainerSettings(image="i", pod_defaults=defaults), stage)


@pytest.mark.parametrize("stage", WORK_STAGES)
def test_the_charts_own_defaults_have_no_digest(stage: Stage) -> None:
    """Jobs of an earlier operator have no annotation. An upgrade must not replace them."""
    assert defaults_digest(TrainerSettings(image="i"), stage) == ""
    assert digest({**POD_DEFAULTS, "runtimeClassName": "", "labels": {}}, stage) == ""


def test_a_digest_changes_with_the_defaults_of_its_own_stage_only() -> None:
    changed = {**POD_DEFAULTS, "train": {"cpuLimit": "8"}}
    assert [bool(digest(changed, stage)) for stage in WORK_STAGES] == [False, True, False]
    general = {**POD_DEFAULTS, "cpuLimit": "8"}
    assert len({digest(general, stage) for stage in WORK_STAGES} - {""}) == 2, "TRAIN's own block differs"
    assert digest(general, Stage.TRAIN) != digest(changed, Stage.TRAIN)


def test_a_digest_does_not_depend_on_the_order_of_members() -> None:
    one = {"labels": {"a": "1", "b": "2"}, "cpuLimit": "2"}
    other = {"cpuLimit": "2", "labels": {"b": "2", "a": "1"}}
    assert digest(one, Stage.MERGE) == digest(other, Stage.MERGE) != ""
