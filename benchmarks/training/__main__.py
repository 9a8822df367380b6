"""Measure the training defaults on the real 135M model and three public data sets: `make benchmark-training`.

Prints a line of JSON per run and a table at the end. Each run differs from the defaults in one setting. `--write` puts the
figures into benchmarks/training/results.json, from which `make docs` writes the table of docs/training.md.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import process_time
from typing import Any

from finetune_trainer.contract.run_spec import RunSpec
from finetune_trainer.data.masking.example import Example
from finetune_trainer.evaluation.compare import mean_loss
from finetune_trainer.evaluation.scoring import row_losses
from finetune_trainer.stages.prepare.stage import prepare
from finetune_trainer.stages.train.batching import choose
from finetune_trainer.stages.train.dataset import open_table, training_dataset
from finetune_trainer.stages.train.origin import origin_of
from finetune_trainer.stages.train.progress_callback import ProgressCallback
from finetune_trainer.stages.train.stage import _build_trainer, _load
from finetune_trainer.stages.train.stop_request import StopRequest
from finetune_trainer.telemetry.reporter import NullReporter
from finetune_trainer.workspace.layout import WorkspaceLayout
from peft.tuners.lora import LoraLayer
from transformers import set_seed

from benchmarks.training.datasets import PACKAGES, rows, versions
from benchmarks.training.variants import DEFAULTS, VARIANTS
from tests.support.airports import airports_run

_RESULTS = Path(__file__).with_name("results.json")
_LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes")


def measure(
    folder: Path, chosen: Sequence[str], steps: int, batch: int, held_out: int
) -> Iterator[dict[str, Any]]:
    """Prepare the data sets, then train one new adapter for each variant and data set; yield the losses.

    The steps are TRAIN's own. The model is loaded once, and each adapter begins as peft initializes it.
    """
    files = {}
    for name in chosen:
        files[name] = {part: folder / f"{name}.{part}.jsonl" for part in ("train", "validation")}
        for path, content in zip(files[name].values(), rows(name, steps * batch, held_out), strict=True):
            path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
        prepare(_run(folder / name, files[name], DEFAULTS, steps, batch, held_out), NullReporter())
    first = _run(folder / chosen[0], files[chosen[0]], DEFAULTS, steps, batch, held_out)
    loaded = _load(first, WorkspaceLayout(folder / chosen[0]))
    base: dict[str, float] = {}
    for setting, value in VARIANTS:
        settings = {**DEFAULTS, **({setting: value} if setting else {})}
        for name in chosen:
            run = _run(folder / name, files[name], settings, steps, batch, held_out)
            workspace = WorkspaceLayout(folder / name)
            examples = open_table(workspace.validation_table).first(held_out)
            _reset(loaded.adapted, run.training.seed)
            if name not in base:
                base[name] = _loss(loaded.adapted, examples)
            started = process_time()
            watch = ProgressCallback(NullReporter(), StopRequest())
            table = open_table(workspace.training_table)
            trainer = _build_trainer(
                run,
                workspace,
                loaded,
                training_dataset(table),
                choose(run.training, table.longest(), None, None),
                steps,
                watch,
                origin_of(run, workspace),
            )
            trainer.train()
            yield {
                "dataset": name,
                "setting": setting,
                "value": value,
                "trainingLoss": round(watch.losses[-1], 4),
                "baseLoss": round(base[name], 4),
                "tunedLoss": round(_loss(loaded.adapted, examples), 4),
                "cpuSeconds": round(process_time() - started, 1),
            }
            shutil.rmtree(workspace.checkpoints)


def _reset(model: Any, seed: int) -> None:
    """Give the adapter the values that peft begins with, for this seed."""
    set_seed(seed)
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.reset_lora_parameters("default", init_lora_weights=True)


def _loss(model: Any, examples: Sequence[Example]) -> float:
    """Return the mean loss of the examples in nats per supervised token."""
    model.eval()
    return mean_loss(row_losses(model, examples, 2048, lambda _done, _total: None))


def _run(
    workspace: Path, files: dict[str, Path], settings: dict[str, Any], steps: int, batch: int, held_out: int
) -> RunSpec:
    """Return the run spec of one run: the quickstart's model with default LoRA settings, without dropout."""
    training = {
        "maximumSteps": steps,
        "effectiveBatchSize": batch,
        "microBatchSize": batch,
        "lora": {
            "rank": 16,
            "alpha": 32,
            "dropout": 0,
            "targetModules": "AllLinear",
            "variant": "Standard",
        },
        "learningRate": settings["learningRate"],
        "schedule": {"type": settings["schedule"], "warmupRatio": settings["warmupRatio"]},
        "weightDecay": settings["weightDecay"],
        "maximumGradientNorm": settings["maximumGradientNorm"],
        "seed": settings["seed"],
    }
    document = airports_run(workspace, workspace.parent / "output", training).model_dump(
        mode="json", by_alias=True
    )
    document["dataset"]["source"]["path"] = str(files["train"])
    document["dataset"]["validation"]["source"]["path"] = str(files["validation"])
    document["evaluation"]["maximumRows"] = held_out
    return RunSpec.model_validate_json(json.dumps(document))


def show(lines: list[dict[str, Any]]) -> None:
    """Print the held-out losses as a table."""
    print(f"\n{'data set':<16}{'setting':<22}{'value':>10}{'base':>9}{'tuned':>9}")
    for line in lines:
        value = "" if line["value"] is None else str(line["value"])
        print(
            f"{line['dataset']:<16}{line['setting'] or 'defaults':<22}{value:>10}"
            f"{line['baseLoss']:>9.4f}{line['tunedLoss']:>9.4f}"
        )


def main() -> None:
    """Measure all data sets, or the selected ones."""
    parser = argparse.ArgumentParser(prog="benchmark-training", description=__doc__)
    parser.add_argument("--steps", type=int, default=12, help="optimizer steps of a run")
    parser.add_argument("--batch", type=int, default=2, help="rows of a step")
    parser.add_argument("--held-out", type=int, default=8, help="rows to evaluate")
    parser.add_argument("--only", choices=tuple(PACKAGES), action="append", help="one data set; repeatable")
    parser.add_argument("--write", action="store_true", help="also write results.json")
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(_RESULTS.read_text("utf-8")) if _RESULTS.is_file() else {}
    results |= {
        "steps": options.steps,
        "batch": options.batch,
        "heldOutRows": options.held_out,
        "defaults": DEFAULTS,
        "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        "packages": versions(),
    }
    chosen = options.only or list(PACKAGES)
    lines = [line for line in results.get("runs", []) if line["dataset"] not in chosen]
    with tempfile.TemporaryDirectory(prefix="benchmark-training-") as folder:
        for line in measure(Path(folder), chosen, options.steps, options.batch, options.held_out):
            print(json.dumps(line), flush=True)
            lines.append(line)
            if options.write:
                # A sweep takes long, so an interrupted one leaves what it has measured.
                _RESULTS.write_text(json.dumps({**results, "runs": lines}, indent=2) + "\n", encoding="utf-8")
    show(lines)


if __name__ == "__main__":
    main()
