"""The run spec's member `report`: what the step Report gets from the operator."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from finetune_trainer.contract.destinations import NamedDestination
from finetune_trainer.contract.value import Value


class MemoryEstimate(Value):
    """GPU memory that the operator expects of the planned rung. Only the report shows it."""

    peak_bytes: int
    device_bytes: int
    low_bytes: int
    high_bytes: int
    bottleneck: str


class ReportFailure(Value):
    """The failure of a job, as the operator knows it."""

    stage: str
    reason: str
    message: str = ""


class ReportTask(Value):
    """The end of a job and the places for the report on it, for the step Report. Since contract 1.9.

    Without `destinations`, since contract 1.10, only trackers are told. `attempts` are those of the FineTuneJob's status: they
    have ends that no trainer could record, such as a kill.
    """

    outcome: Literal["Succeeded", "Failed"]
    failure: ReportFailure | None = None
    attempts: Annotated[tuple[dict[str, Any], ...], Field(max_length=20)] = ()
    destinations: Annotated[tuple[NamedDestination, ...], Field(max_length=8)]
