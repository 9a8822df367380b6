"""Time of TRAIN's step beside a bare PyTorch loop: `make benchmark-train-overhead`.

Both train the same adapter on the same passes with the same loss, kind of optimizer and schedule, in turns in one process.
So the difference is what TRAIN does besides: transformers' Trainer, callbacks, telemetry, prefetching, finite checks and
requests to stop. Checkpoints have a benchmark of their own.

`quickstart` is the model and the data of the quickstart. `deep` has as many layers and adapter matrices as a 7B model, but
tiny ones: its difference in milliseconds is that of a model of this depth, whatever a step costs. Prints a line of JSON
per model and a table. Use the processor time: load of the machine affects it least.
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from finetune_trainer.contract.identity import Identity
from finetune_trainer.contract.run_spec import RunSpec
from finetune_trainer.model.attention import attention_of
from finetune_trainer.model.packed_attention import using_attention
from finetune_trainer.stages.prepare.stage import prepare
from finetune_trainer.stages.train.batching import choose
from finetune_trainer.stages.train.dataset import open_table, training_dataset
from finetune_trainer.stages.train.loop import AdapterTrainer
from finetune_trainer.stages.train.loss import negative_log_likelihood
from finetune_trainer.stages.train.passes import Step, StepCollator
from finetune_trainer.stages.train.progress_callback import ProgressCallback
from finetune_trainer.stages.train.stage import _build_trainer, _load
from finetune_trainer.stages.train.stop_request import StopRequest
from finetune_trainer.telemetry.reporter import NullReporter, Reporter
from finetune_trainer.workspace.layout import WorkspaceLayout
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from tests.support import workspaces
from tests.support.airports import airports_run

_LAYERS = 32
_ROWS = 4
_SAMPLES = 2000
_WARM_UP = 2


@dataclass(frozen=True)
class Turn:
    """Seconds of one turn: of all processors, and of the clock."""

    processor: float
    wall: float


class Stopwatch:
    """Measures one turn after another."""

    def __init__(self) -> None:
        self._began = self._now()

    def start(self) -> None:
        """Begin a turn."""
        self._began = self._now()

    def stop(self) -> Turn:
        """Return the turn that has begun last."""
        processor, wall = self._now()
        return Turn(processor - self._began[0], wall - self._began[1])

    def _now(self) -> tuple[float, float]:
        return time.process_time(), time.perf_counter()


class Turns(TrainerCallback):
    """Lets `bare` take a turn of `steps` steps for each turn of the trainer, on the same rows.

    Odd rounds begin with the trainer, and even ones with the bare loop. So a trend of the machine cancels.
    """

    def __init__(
        self, rounds: int, steps: int, bare: Callable[[], Iterator[None]], watch: Stopwatch | None = None
    ) -> None:
        self.ours: list[Turn] = []
        self.bare: list[Turn] = []
        self._rounds = rounds
        self._steps = steps
        self._start_bare = bare
        self._loop: Iterator[None] = iter(())
        self._watch = watch or Stopwatch()

    @property
    def all_steps(self) -> int:
        """Steps that the trainer must take; the last one only ends the last turn."""
        return _WARM_UP + self._rounds * self._steps + 1

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 -- the base class's signature
        """End the trainer's turn and begin the next one, if it is time."""
        done = state.global_step - _WARM_UP
        if done == 0:
            # The optimizer exists by now.
            self._loop = self._start_bare()
            for _step in range(_WARM_UP):
                next(self._loop)
        elif done < 0 or done % self._steps:
            return
        else:
            self.ours.append(self._watch.stop())
        ended = done // self._steps
        due = ended if ended % 2 or ended == self._rounds else ended + 1
        for _turn in range(due - len(self.bare)):
            self._watch.start()
            for _step in range(self._steps):
                next(self._loop)
            self.bare.append(self._watch.stop())
        self._watch.start()


def bare_loop(trainer: AdapterTrainer, run: RunSpec, dataset: Any, collate: StepCollator) -> Iterator[None]:
    """Train without any library above torch; each item is a finished step."""
    model = trainer.adapted
    parameters = [value for value in model.parameters() if value.requires_grad]
    optimizer = same_kind(trainer.optimizer, parameters, run.training.learning_rate)
    schedule = LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(step / 1000)))
    loader = DataLoader(dataset, batch_size=run.training.effective_batch_size, collate_fn=collate)

    attention = attention_of(model.config, "cpu", packed=True).implementation

    def take(step: Step) -> float:
        loss = torch.zeros(())
        with using_attention(model, attention):
            for one in step.passes:
                part = negative_log_likelihood(model, one) / step.learned
                part.backward()
                loss += part.detach()
        torch.nn.utils.clip_grad_norm_(parameters, run.training.maximum_gradient_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        return loss.item()

    while True:
        for step in loader:
            if not math.isfinite(take(step)):
                raise ValueError("the loss must be finite")
            yield


def same_kind(wrapped: Any, parameters: Sequence[torch.Tensor], rate: float) -> torch.optim.Optimizer:
    """Return an optimizer with the settings of the one that accelerate has `wrapped`."""
    kind = type(wrapped.optimizer)
    # torch adds defaults that the class does not accept.
    accepted = inspect.signature(kind).parameters
    settings = {name: value for name, value in wrapped.defaults.items() if name in accepted}
    created: torch.optim.Optimizer = kind(parameters, **{**settings, "lr": rate})
    return created


def measure(run: RunSpec, rounds: int, steps: int) -> dict[str, Any]:
    """Train in turns on the prepared workspace of `run`; return medians per step, the ratio and its interval."""
    layout = WorkspaceLayout(run.workspace.path)
    table = open_table(layout.training_table)
    batching = choose(run.training, table.longest(), None, None)
    reporter = Reporter(Identity("uid", "Train", 0), progress_path=layout.root / "progress.json", port=19600)
    watch = ProgressCallback(reporter, StopRequest())
    dataset = training_dataset(table)
    turns = Turns(rounds, steps, lambda: bare_loop(trainer, run, dataset, StepCollator(batching)))
    trainer = _build_trainer(run, layout, _load(run, layout), dataset, batching, turns.all_steps, watch)
    # Both loops take the rows in the same order.
    trainer.args.train_sampling_strategy = "sequential"
    trainer.add_callback(turns)
    try:
        trainer.train()
    finally:
        reporter.close()
    return {"batching": batching.kind, "rounds": rounds, "stepsPerTurn": steps} | summary(
        turns.ours, turns.bare, steps
    )


def summary(ours: Sequence[Turn], bare: Sequence[Turn], steps: int) -> dict[str, Any]:
    """Return milliseconds per step and the ratio of the sums with its 95 % interval (percentile bootstrap over rounds)."""
    found: dict[str, Any] = {}
    for kind in ("processor", "wall"):
        pairs = [(getattr(one, kind), getattr(other, kind)) for one, other in zip(ours, bare, strict=True)]
        draw = random.Random(1)  # noqa: S311 -- a sample, not a secret
        ratios = sorted(_ratio(draw.choices(pairs, k=len(pairs))) for _ in range(_SAMPLES))
        found[kind] = {
            "oursMilliseconds": round(1000 * median(one for one, _ in pairs) / steps, 2),
            "bareMilliseconds": round(1000 * median(other for _, other in pairs) / steps, 2),
            "differenceMilliseconds": round(1000 * median(one - other for one, other in pairs) / steps, 2),
            "ratio": round(_ratio(pairs), 4),
            "interval": [round(ratios[_SAMPLES // 40], 4), round(ratios[-_SAMPLES // 40], 4)],
        }
    return found


def _ratio(pairs: Sequence[tuple[float, float]]) -> float:
    return sum(one for one, _ in pairs) / sum(other for _, other in pairs)


def quickstart(folder: Path, rows: int = _ROWS) -> RunSpec:
    """Prepare the quickstart's model and data; a step has `rows` rows, and a pass 4."""
    settings = {"effectiveBatchSize": rows, "microBatchSize": _ROWS}
    run = airports_run(folder / "workspace", folder / "output", settings)
    prepare(run, NullReporter())
    return run


def deep(folder: Path, rows: int = _ROWS) -> RunSpec:
    """Prepare a model of 32 tiny layers; a step has `rows` rows, and a pass 4."""
    workspaces.write_base(folder / "base", "llama", num_hidden_layers=_LAYERS)
    workspaces.prepare(folder / "workspace", folder / "base")
    settings: dict[str, Any] = {"effectiveBatchSize": rows, "microBatchSize": _ROWS, "learningRate": 1e-4}
    return workspaces.run_spec(folder / "workspace", folder / "output", **settings)


MODELS: dict[str, tuple[Callable[..., RunSpec], int]] = {"quickstart": (quickstart, 1), "deep": (deep, 10)}
"""How to prepare each model, and the steps of a turn."""


def show(lines: Sequence[dict[str, Any]]) -> None:
    """Print all results as a table."""
    print(f"\n{'model':<12}{'time':<11}{'ours ms':>10}{'bare ms':>10}{'more ms':>10}{'ratio':>9}  interval")
    for line in lines:
        for kind in ("processor", "wall"):
            found = line[kind]
            low, high = found["interval"]
            print(
                f"{line['model']:<12}{kind:<11}{found['oursMilliseconds']:>10.2f}{found['bareMilliseconds']:>10.2f}"
                f"{found['differenceMilliseconds']:>10.2f}{found['ratio']:>9.4f}  {low:.4f} to {high:.4f}"
            )


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure all models, or one; return the lines."""
    parser = argparse.ArgumentParser(prog="benchmark-train-overhead", description=__doc__)
    parser.add_argument("--rounds", type=int, default=40, help="turns of each loop; default %(default)s")
    parser.add_argument("--only", choices=tuple(MODELS), help="one model")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    lines = []
    for name, (make, steps) in MODELS.items():
        if options.only in (None, name):
            with tempfile.TemporaryDirectory(prefix="benchmark-train-overhead-") as folder:
                line = {"model": name, **measure(make(Path(folder)), options.rounds, steps)}
            print(json.dumps(line), flush=True)
            lines.append(line)
    show(lines)
    return lines


if __name__ == "__main__":
    main()
