"""Sizes pretend GPUs too small or large enough for the tiny model's training."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from devcluster.gpus import Gpus
from finetune_operator.sizing.gpus.products import usable_of_label
from finetune_operator.sizing.memory.estimate import estimate
from finetune_operator.sizing.memory.shape import model_shape
from finetune_operator.sizing.memory.stack import DEFAULT_STACK
from finetune_operator.sizing.memory.training_plan import TrainingPlan
from finetune_operator.sizing.request import SHORTEST_LENGTH

from tests.support.e2e import jobs

LONG_ROW = 192
_MIB = 1 << 20


@dataclass(frozen=True)
class PretendGpus:
    """GPUs by their suitability for `jobs.fine_tune_job`.

    `too_small` and any GPU with less than `least_mib` never fit. `short_rows` fits only the shortest possible rows, so
    only the data shows that rows of LONG_ROW tokens do not fit. The others fit all data.
    """

    too_small: Gpus
    short_rows: Gpus
    small: Gpus
    large: Gpus
    least_mib: int


def pretend_gpus(model: Path) -> PretendGpus:
    """Return GPUs of unknown products, sized by the operator's estimate for the model in the folder `model`."""
    shape = model_shape(json.loads((model / "config.json").read_text("utf-8")))
    training = jobs.fine_tune_job("any")["spec"]["training"]

    def need(length: int, *, checkpointing: bool) -> tuple[int, int]:
        plan = TrainingPlan(
            length,
            training["microBatchSize"],
            gradient_checkpointing=checkpointing,
            # The device is a CPU.
            optimizer="AdamW",
        )
        found = estimate(shape, plan, DEFAULT_STACK)
        return found.device_bytes, found.high_bytes

    least, _ = need(1, checkpointing=True)
    shortest, _ = need(SHORTEST_LENGTH, checkpointing=True)
    longer, _ = need(LONG_ROW, checkpointing=True)
    _, most = need(training["maximumLength"], checkpointing=False)
    return PretendGpus(
        Gpus("NVIDIA-Pretend-Tiny", _label(least // 2), 1),
        Gpus("NVIDIA-Pretend-Short", _label((shortest + longer) // 2), 1),
        Gpus("NVIDIA-Pretend-Small", _label(most + most // 5), 1),
        Gpus("NVIDIA-Pretend-Large", _label(4 * most), 1),
        least // _MIB,
    )


def _label(usable: int) -> int:
    """Return the smallest memory label, in MiB, of a GPU with `usable` bytes for a process."""
    memory = usable // _MIB
    while usable_of_label(memory) < usable:
        memory += 1
    return memory
