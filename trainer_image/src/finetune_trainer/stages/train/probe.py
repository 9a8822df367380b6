"""The probe: two optimizer steps on the longest batch that the plan can form, before training, and without a trace.

A step needs the most memory with the most tokens, in the second of two steps: then the optimizer's states exist, and so do
the gradients from the second micro-batch on. A GPU that is too small fails here, not after hours of training.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset
from transformers import TrainerCallback
from transformers.training_args import OptimizerNames

from finetune_trainer.contract.train_result import ProbeResult
from finetune_trainer.data.masking.example import IGNORED
from finetune_trainer.stages.train import memory
from finetune_trainer.stages.train.loop import AdapterTrainer
from finetune_trainer.stages.train.loss import Objective
from finetune_trainer.stages.train.random_states import random_states, restore_random_states
from finetune_trainer.stages.train.ranks.group import ALONE
from finetune_trainer.stages.train.settings import sft_config

if TYPE_CHECKING:
    from collections.abc import Iterator

    from finetune_trainer.contract.run_spec import RunSpec
    from finetune_trainer.data.dataset.tables import ExampleTable
    from finetune_trainer.model.fused.layers import FusedLayers
    from finetune_trainer.stages.train.batching import Batching
    from finetune_trainer.stages.train.ranks.group import Ranks
    from finetune_trainer.telemetry.reporter import Reporter
    from finetune_trainer.workspace.layout import WorkspaceLayout

ACTIVITY = "ProbingMemory"
STEPS = 2


def needs_probe(*, resumes: bool, finished: bool, passed: bool) -> bool:
    """Return whether a probe can tell something.

    It cannot if the steps are `finished`. It cannot either if the run `resumes` from a checkpoint, and its rung has
    `passed` a probe on the same kind of device: its own steps have already shown more.
    """
    return not finished and not (resumes and passed)


def longest_batch(table: ExampleTable, micro_batch_size: int, effective_batch_size: int) -> Dataset:
    """Return the rows of the largest optimizer step: `input_ids` and `labels`, in the order of the step.

    These are the longest rows, padded to the longest of all. Each micro-batch learns as many tokens as the
    `micro_batch_size` rows with the most learned tokens do, at the ends of its rows. So no real micro-batch has more
    tokens, or more learned ones.
    """
    lengths = table.lengths()
    # The sort is stable, so that the probe is the same every time.
    chosen = np.argsort(-lengths.astype(np.int64), kind="stable")[:effective_batch_size]
    most_learned = np.sort(table.learned())[::-1][:micro_batch_size]
    column = table.arrow.column("input_ids")
    longest = int(lengths.max())
    rows: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for position, index in enumerate(chosen):
        ids = column[int(index)].as_py()
        ids += [0] * (longest - len(ids))
        learned = max(1, min(longest - 1, int(most_learned[position % len(most_learned)])))
        rows["input_ids"].append(ids)
        rows["labels"].append([IGNORED] * (longest - learned) + ids[longest - learned :])
    return Dataset.from_dict(rows)


def probe(
    run: RunSpec,
    workspace: WorkspaceLayout,
    model: Any,
    tokenizer: Any,
    table: ExampleTable,
    batching: Batching,
    progress: Reporter,
    kernels: FusedLayers | None = None,
    ranks: Ranks = ALONE,
) -> ProbeResult:
    """Take the two steps with the adapted `model`, put everything back, and return the peaks.

    Raises the device's out-of-memory error if the rung of `run` does not fit.
    """
    progress.update(ACTIVITY, 0, STEPS)
    training = run.training
    rows = longest_batch(table, training.micro_batch_size, training.effective_batch_size)
    with unchanged(model):
        trainer = AdapterTrainer(
            model=model,
            args=probe_config(run, workspace),
            train_dataset=rows,
            processing_class=tokenizer,
            callbacks=[_ProbeProgress(progress)],
            checkpoints=workspace.checkpoints,
            batching=batching,
            kernels=kernels,
            ranks=ranks,
            objective=Objective.of(model, training.router_aux_loss_coefficient),
        )
        trainer.train()
        reading = memory.read()
        del trainer
    memory.release()
    result = ProbeResult(sequence_length=len(rows[0]["input_ids"]))
    if reading is None:
        return result
    return result.model_copy(
        update={"allocated_bytes": reading.allocated_peak, "reserved_bytes": reading.reserved_peak}
    )


@contextmanager
def unchanged(model: Any) -> Iterator[None]:
    """Put the trained values, the gradients and every random state back after the `with` statement, bit for bit."""
    # On the CPU, because a copy on the GPU would count as memory of the step.
    values = [
        (parameter, parameter.detach().to("cpu", copy=True))
        for parameter in model.parameters()
        if parameter.requires_grad
    ]
    training = model.training
    states = random_states()
    try:
        yield
    finally:
        model.zero_grad(set_to_none=True)
        for parameter, value in values:
            parameter.data = parameter.data.to(value.dtype).copy_(value)
        model.train(training)
        restore_random_states(states)


class _ProbeProgress(TrainerCallback):
    """Reports the steps of the probe."""

    def __init__(self, progress: Reporter) -> None:
        self._progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 -- the base class's signature
        self._progress.update(ACTIVITY, state.global_step, STEPS)


def probe_config(run: RunSpec, workspace: WorkspaceLayout) -> Any:
    """Return the settings of the run itself, but for two steps in the order of the rows, and without a trace."""
    config = sft_config(run, workspace.checkpoints, STEPS)
    config.train_sampling_strategy = "sequential"
    config.save_strategy = "no"
    config.logging_strategy = "no"
    # bitsandbytes never frees paged states. These would stay on the device beside those of the training.
    config.optim = OptimizerNames(OptimizerNames(config.optim).value.removeprefix("paged_"))
    return config
