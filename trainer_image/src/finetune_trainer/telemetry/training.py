"""What TRAIN has measured so far, in the form of the member `training` of the progress document."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from finetune_trainer.contract.timestamps import rfc3339


@dataclass(frozen=True)
class TrainingMeasurements:
    """Numbers of this process. Each stays until a newer one replaces it, also after the training. None is unknown.

    `steps` and `tokens` (without padding) are counts. `seconds` is the time of all steps, `step_seconds` that of the last
    one. `evaluation_loss` is the last loss on held-out rows, in nats per supervised token. `router_aux_loss` is the
    load-balancing loss of the last step, if the job asks for it. `checkpoint_time` is that of the
    newest checkpoint; before the first one, it is the begin of the training. The bytes are those of torch's allocator.
    `rank_seconds` are the seconds that each rank needed for its own passes of a step; None if there is one process.
    `rank_device_bytes` and `rank_host_bytes` are the peaks of each rank's tensors on its GPU and of its resident memory.
    """

    steps: int = 0
    seconds: float = 0.0
    tokens: int = 0
    step_seconds: float | None = None
    evaluation_loss: float | None = None
    router_aux_loss: float | None = None
    checkpoint_time: datetime | None = None
    allocated_bytes: int | None = None
    peak_allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    rank_seconds: tuple[float, ...] | None = None
    rank_device_bytes: tuple[int, ...] | None = None
    rank_host_bytes: tuple[int, ...] | None = None

    def document(self) -> dict[str, Any]:
        """The known numbers, with the names of progress.schema.json. JSON has no number that is not finite."""
        found: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, datetime):
                value = rfc3339(value)
            if value is None or (isinstance(value, float) and not math.isfinite(value)):
                continue
            if isinstance(value, tuple):
                value = list(value)
            first, *others = field.name.split("_")
            found[first + "".join(map(str.capitalize, others))] = value
        return found
