"""What a running TRAIN has measured, as a typed value within bounds."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from finetune_operator.contract.bounded import MOST_RANKS, Count, Document, Finite, NotNegative, Step, Time

_Seconds = Annotated[tuple[NotNegative, ...], Field(min_length=2, max_length=MOST_RANKS)]
_Bytes = Annotated[tuple[Count, ...], Field(min_length=2, max_length=MOST_RANKS)]


class TrainingReport(Document):
    """The member `training` of the progress (contract/progress.schema.json), which a trainer before 1.9 does not send.

    `seconds` is the time of all steps of this process. `evaluation_loss` is in nats per supervised token.
    `router_aux_loss` is the last step's load-balancing loss, since 1.11 and only if the job asks for it.

    The numbers of ranks have one value for each, in their order, and one process alone sends none. `rank_seconds`, since 1.11, is
    the time of a rank's own passes of a step. The peaks of its memory follow since 1.13; on a CPU, only those of the host.
    """

    steps: Step
    seconds: NotNegative
    tokens: Count
    step_seconds: NotNegative | None = None
    evaluation_loss: Finite | None = None
    router_aux_loss: NotNegative | None = None
    checkpoint_time: Time | None = None
    allocated_bytes: Count | None = None
    peak_allocated_bytes: Count | None = None
    reserved_bytes: Count | None = None
    peak_reserved_bytes: Count | None = None
    rank_seconds: _Seconds | None = None
    rank_device_bytes: _Bytes | None = None
    rank_host_bytes: _Bytes | None = None
