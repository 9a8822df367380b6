"""Checks that this version can read a stored status, which a newer or an older version may have written.

Members that the operator never reads again may have any form: they are kept as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)
from pydantic.alias_generators import to_camel

from finetune_operator.api.conditions import Truth
from finetune_operator.api.formats import parse_time
from finetune_operator.api.stages import Stage


def _parse(value: object) -> datetime:
    return parse_time(str(value))


def _is_object(text: str) -> str:
    """Check that `text` is a JSON object."""
    if isinstance(json.loads(text), dict):
        return text
    raise ValueError("must be a JSON object")


Time = Annotated[AwareDatetime, BeforeValidator(_parse)]
Number = Annotated[int, Field(ge=0, strict=True)]


class _Part(BaseModel):
    """A part of a status. Members that no decision reads may be anything."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore")


class _Condition(_Part):
    type: str
    status: Truth
    reason: str
    message: str = ""
    last_transition_time: Time


class _Conditions(_Part):
    conditions: list[_Condition] | None = None


class _Stage(_Part):
    name: Stage = Stage.PREPARE
    attempt: Number = 0
    node: str | None = None
    start_time: Time | None = None
    retry_time: Time | None = None


class _Attempt(_Part):
    stage: str
    attempt: Number
    outcome: str
    reason: str | None = None
    message: str | None = None
    completion_time: Time | None = None


class _Waiting(_Part):
    since: Time | None = None
    total_seconds: Number | None = None


class _Trainer(_Part):
    contract_version: Annotated[str, Field(pattern=r"^[0-9]{1,6}\.[0-9]{1,6}$")] | None = None
    image: str | None = None


class _Rung(_Part):
    micro_batch_size: Number
    gradient_checkpointing: bool
    optimizer: str | None = None
    weights: str | None = None


class _Training(_Rung):
    sequence_length: Number
    learning_rate: float | None = None


class _Named(_Part):
    name: str
    reason: str


class _Host(_Part):
    stage: str


class _Memory(_Part):
    device_bytes: Number | None = None


class _Plan(_Part):
    training: _Training | None = None
    ladder: list[_Rung] | None = None
    choices: list[_Named] | None = None
    warnings: list[str] | None = None
    hosts: list[_Host] | None = None
    memory: _Memory | None = None


class _Model(_Part):
    config: Annotated[str, AfterValidator(_is_object)] | None = None


class _Dataset(_Part):
    longest_example: Number | None = None
    training_examples: Number | None = None
    validation_examples: Number | None = None
    supervised_tokens: Number | None = None
    training_tokens: Number | None = None
    warnings: list[dict[str, Any]] | None = None


class _Progress(_Part):
    update_time: Time | None = None


class _Status(_Part):
    """The members that decisions read."""

    spec_hash: str | None = None
    start_time: Time | None = None
    stage: _Stage | None = None
    attempts: list[_Attempt] | None = None
    waiting: _Waiting | None = None
    trainer: _Trainer | None = None
    plan: _Plan | None = None
    model: _Model | None = None
    dataset: _Dataset | None = None
    progress: _Progress | None = None


def status_problem(status: Mapping[str, Any]) -> str | None:
    """Say which member of a stored status this version cannot read; None if it can read what it needs."""
    return _problem(_Status, status)


def conditions_problem(status: Mapping[str, Any]) -> str | None:
    """The same for the conditions, without which nothing is known about a job."""
    return _problem(_Conditions, status)


def _problem(kind: type[_Part], status: Mapping[str, Any]) -> str | None:
    try:
        kind.model_validate(status)
    except RecursionError:
        return "status.model.config: must not be nested so deeply"
    except ValidationError as error:
        detail = error.errors(include_url=False, include_context=False, include_input=False)[0]
        path = ".".join(str(step) for step in detail["loc"])
        return f"status.{path}: {detail['msg'].removeprefix('Value error, ')}"
    return None
