"""Tells whether a stage's Job was made with the chart's present pod defaults."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from typing import Any

from finetune_operator.api.pods import PodTemplate, parse_pod_defaults
from finetune_operator.api.stages import WORK_STAGES, Stage
from finetune_operator.settings import POD_DEFAULTS, TrainerSettings

_STAGE_BLOCKS = frozenset(stage.slug for stage in WORK_STAGES)


def defaults_digest(trainer: TrainerSettings, stage: Stage) -> str:
    """Return a digest of the pod defaults that concern `stage`; empty for those of the chart itself.

    A Job of an operator without pod defaults, or with other ones of its chart, therefore counts as made with them.
    """
    content = _content(trainer.defaults, stage)
    if content == _chart_content(stage):
        return ""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


@cache
def _chart_content(stage: Stage) -> list[dict[str, Any]]:
    """The values of the chart itself, which never change in a process."""
    return _content(parse_pod_defaults(POD_DEFAULTS), stage)


def _content(defaults: PodTemplate, stage: Stage) -> list[dict[str, Any]]:
    """The values that concern one stage, without those that are not set."""
    general = defaults.model_dump(
        mode="json", by_alias=True, exclude_defaults=True, exclude=set(_STAGE_BLOCKS)
    )
    own = defaults.of(stage).model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return [general, own]
