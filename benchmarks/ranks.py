"""Time of TRAIN's step on several processes beside a bare torchrun loop with DDP: `make benchmark-ranks`.

Both train the same adapter over the same NF4 layers, on the same rows in the same passes, with the same loss, kind of
optimizer and schedule. They take turns in the same processes, which torchrun's launcher starts and gloo connects. So the
difference is what TRAIN does besides: what `benchmarks.train_overhead` measures for one process, the agreement of the ranks
on each step, and their progress, which the launching process publishes.

The bare loop is as fast as PyTorch lets it be: each rank reads its own rows only, DDP neither sends buffers nor copies
gradients, and no rank knows the loss of another one. Its shares of rows are computed before it begins.

Processor time is that of all ranks and of the launching process. Prints a line of JSON per model and a table. Use the
processor time: load of the machine affects it least.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from finetune_trainer.contract.identity import Identity
from finetune_trainer.contract.run_spec import RunSpec
from finetune_trainer.model.attention import attention_of
from finetune_trainer.model.packed_attention import using_attention
from finetune_trainer.stages.train.batching import Batching, choose
from finetune_trainer.stages.train.dataset import open_table, training_dataset
from finetune_trainer.stages.train.loop import AdapterTrainer
from finetune_trainer.stages.train.loss import negative_log_likelihood
from finetune_trainer.stages.train.passes import Pass, Step, StepCollator
from finetune_trainer.stages.train.progress_callback import ProgressCallback
from finetune_trainer.stages.train.ranks.channel import Address, Channel, Listening, RankReporter
from finetune_trainer.stages.train.ranks.group import ProcessGroup, Ranks, joined
from finetune_trainer.stages.train.ranks.shares import shares
from finetune_trainer.stages.train.stage import _build_trainer, _load
from finetune_trainer.stages.train.stop_request import StopRequest
from finetune_trainer.telemetry.reporter import NullReporter, Reporter
from finetune_trainer.workspace.layout import WorkspaceLayout
from torch import distributed
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from benchmarks.train_overhead import MODELS, Stopwatch, Turn, Turns, same_kind, show, summary

_ROWS_OF_A_RANK = 4
_TIMEOUT_SECONDS = 600.0


@dataclass(frozen=True)
class Task:
    """What the ranks measure. `launcher` is the id of the process that has launched them."""

    run: str
    rounds: int
    steps: int
    launcher: int


class RankStopwatch(Stopwatch):
    """Begins each turn when all ranks have come. The first rank counts the processor time of the launching process, too."""

    def __init__(self, ranks: ProcessGroup, launcher: int) -> None:
        # clock_getcpuclockid(3), which Python does not have.
        self._clocks = [(~launcher << 3) | 2] if ranks.is_first else []
        self._ranks = ranks
        super().__init__()

    def start(self) -> None:
        """See the base class."""
        self._ranks.meet()
        super().start()

    def _now(self) -> tuple[float, float]:
        processor, wall = super()._now()
        return processor + sum(map(time.clock_gettime, self._clocks)), wall


class _BareLoss(torch.nn.Module):
    """The loss of a pass as a module, because DDP wraps one."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, one: Pass) -> torch.Tensor:
        return negative_log_likelihood(self.model, one)


def bare_loop(
    trainer: AdapterTrainer, model: Any, run: RunSpec, dataset: Any, batching: Batching, ranks: ProcessGroup
) -> Iterator[None]:
    """Train `model` without any library above torch; each item is a finished step."""
    parameters = [value for value in model.parameters() if value.requires_grad]
    optimizer = same_kind(trainer.optimizer, parameters, run.training.learning_rate)
    schedule = LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(step / 1000)))
    replica = DistributedDataParallel(
        _BareLoss(model), forward_sync_buffers=False, gradient_as_bucket_view=True
    )
    own, learned = own_rows(dataset, run.training.effective_batch_size, ranks)
    loader = DataLoader(dataset, batch_sampler=own, collate_fn=StepCollator(batching))
    attention = attention_of(model.config, "cpu", packed=True).implementation

    def take(step: Step, tokens: int) -> float:
        loss = torch.zeros(())
        # DDP divides the sum of gradients by the number of ranks.
        share = ranks.size / tokens
        with using_attention(model, attention):
            for one in step.passes[:-1]:
                with replica.no_sync():
                    part = replica(one) * share
                    part.backward()
                loss += part.detach()
            part = replica(step.passes[-1]) * share
            part.backward()
            loss += part.detach()
        torch.nn.utils.clip_grad_norm_(parameters, run.training.maximum_gradient_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        return loss.item()

    while True:
        for step, tokens in zip(loader, learned, strict=True):
            if not math.isfinite(take(step, tokens)):
                raise ValueError("the loss must be finite")
            yield


def own_rows(dataset: Any, size: int, ranks: Ranks) -> tuple[list[list[int]], list[int]]:
    """Return the rows of this rank in each step of `size` rows, and the learned tokens of all ranks in it."""
    rows, learned = [], []
    for first in range(0, len(dataset), size):
        places = range(first, min(first + size, len(dataset)))
        batch = [dataset[place] for place in places]
        chosen = shares([len(row["input_ids"]) for row in batch], ranks.size)[ranks.rank]
        rows.append([places[row] for row in chosen])
        learned.append(sum(label != -100 for row in batch for label in row["labels"][1:]))
    return rows, learned


def work(task: Task, address: Address) -> tuple[str, list[Turn], list[Turn]]:
    """Measure as the rank that torchrun's environment variables name; return the passes, and the turns of both loops."""
    torch.set_num_threads(1)
    channel = Channel(address, int(os.environ["RANK"]))
    run = RunSpec.model_validate_json(task.run)
    with joined("cpu", _TIMEOUT_SECONDS) as ranks:
        return _measure(run, task, RankReporter(channel) if ranks.is_first else NullReporter(), ranks)


def _measure(
    run: RunSpec, task: Task, progress: Reporter, ranks: ProcessGroup
) -> tuple[str, list[Turn], list[Turn]]:
    layout = WorkspaceLayout(run.workspace.path)
    table = open_table(layout.training_table)
    batching = choose(run.training, table.longest(), None, None)
    dataset = training_dataset(table)
    other = _load(run, layout).adapted.train()
    turns = Turns(
        task.rounds,
        task.steps,
        lambda: bare_loop(trainer, other, run, dataset, batching, ranks),
        RankStopwatch(ranks, task.launcher),
    )
    watch = ProgressCallback(progress, StopRequest())
    trainer = _build_trainer(
        run, layout, _load(run, layout), dataset, batching, turns.all_steps, watch, ranks=ranks
    )
    # Both loops take the rows in the same order.
    trainer.args.train_sampling_strategy = "sequential"
    trainer.add_callback(turns)
    trainer.train()
    distributed.barrier()
    return batching.kind, turns.ours, turns.bare


def measure(run: RunSpec, processes: int, rounds: int, steps: int) -> dict[str, Any]:
    """Train in turns on the prepared workspace of `run`; return medians per step, the ratios and their intervals."""
    multiprocessing.set_forkserver_preload([work.__module__])
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        start_method="forkserver",
    )
    task = Task(run.model_dump_json(by_alias=True, exclude_none=True), rounds, steps, os.getpid())
    root = WorkspaceLayout(run.workspace.path).root
    reporter = Reporter(Identity("uid", "Train", 0), progress_path=root / "progress.json", port=19600)
    try:
        with Listening(reporter) as listening:
            found = elastic_launch(config, work)(task, listening.address)
    finally:
        reporter.close()
    kinds, ours, bare = zip(*(found[rank] for rank in sorted(found)), strict=True)
    return {
        "batching": kinds[0],
        "processes": processes,
        "rounds": rounds,
        "stepsPerTurn": steps,
        **summary(together(ours), together(bare), steps),
    }


def together(ranks: Sequence[Sequence[Turn]]) -> list[Turn]:
    """Return the turns of all ranks from those of each: they add processor time, and the slowest one has the wall time."""
    return [
        Turn(sum(each.processor for each in turn), max(each.wall for each in turn))
        for turn in zip(*ranks, strict=True)
    ]


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure all models, or one; return the lines."""
    parser = argparse.ArgumentParser(prog="benchmark-ranks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=40, help="turns of each loop; default %(default)s")
    parser.add_argument("--processes", type=int, default=2, help="ranks; default %(default)s")
    parser.add_argument("--only", choices=tuple(MODELS), help="one model")
    options = parser.parse_args(arguments)
    lines = []
    for name, (make, steps) in MODELS.items():
        if options.only in (None, name):
            with tempfile.TemporaryDirectory(prefix="benchmark-ranks-") as folder:
                run = make(Path(folder), _ROWS_OF_A_RANK * options.processes)
                line = {"model": name, **measure(run, options.processes, options.rounds, steps)}
            print(json.dumps(line), flush=True)
            lines.append(line)
    show(lines)
    return lines


if __name__ == "__main__":
    main()
