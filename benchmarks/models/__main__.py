"""The sizes of published models, the accuracy of their traces, and what the traces cost: `make benchmark-models`.

- `sizes` traces popular models without a formula, with a job's defaults. docs/models.md shows them with their GPU.
- `accuracy` compares traces with runs of all layers on fake tensors (`tests.support.memory_oracle.published`).
- `cost` makes the whole trace of the largest models, as PREPARE does: seconds, and the peak memory of its process.

Prints a line of JSON per model. With --write, the results are put into benchmarks/models/results.json, from which `make docs`
writes the tables. With --missing, only models whose result there is missing, or is of other inputs, are measured.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from finetune_cli.plan.inputs import DEFAULT_JOB
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.contract.run_spec import training_member
from finetune_operator.sizing.planning import make_plan
from finetune_trainer.contract.memory_trace import TraceRequest
from finetune_trainer.stages.prepare.memory_trace import TOOLS, inputs_digest

from benchmarks.models.catalog import BY_FORMULA, TRACED
from tests.support.memory_oracle.published import BY_NAME, LARGE, MODELS

RESULTS = Path(__file__).with_name("results.json")
PARTS = ("sizes", "accuracy", "cost")


def config_of(name: str) -> dict[str, Any]:
    """Return the config.json of a model."""
    return TRACED.get(name) or BY_NAME[name].document


def request(name: str) -> dict[str, Any]:
    """Return the request of PREPARE for a model, in a job whose values are the defaults and whose rows are the longest."""
    spec = FineTuneJobSpec.parse(dict(DEFAULT_JOB))
    training = training_member(spec.training, make_plan(spec, "cuda"), "cuda")
    return {"training": training, "config": config_of(name), "length": spec.training.maximum_length}


def inputs(name: str) -> str:
    """Return the digest of what the trace of a model depends on, with the installed libraries."""
    asked = TraceRequest.model_validate(request(name))
    return inputs_digest(asked.training, asked.config, asked.length)


def size(name: str) -> dict[str, Any]:
    """Trace one model in the most frugal way, which decides about its smallest GPU."""
    from finetune_trainer.trace.command import traced  # noqa: PLC0415 -- imports torch

    problem: str | None = None
    # A model whose layers depend on each other fails at once, and then needs time to run all of them.
    for readings in (1, 2):
        # The first way is that of the run, and no time is left for others.
        clock = partial(next, iter([0.0] * readings), 1e9)
        answer = traced(TraceRequest.model_validate(request(name)), clock)
        if answer.trace is not None:
            return {"type": config_of(name)["model_type"], "inputs": inputs(name), **answer.document()}
        problem = answer.problem
    raise SystemExit(f"{name} must have a trace, found: {problem}")


def accuracy(name: str) -> dict[str, Any]:
    """Compare the trace of one model with a run of all its layers."""
    from tests.support.memory_oracle.comparison import compare  # noqa: PLC0415 -- imports torch

    found = compare(BY_NAME[name])
    return {**asdict(found), "seconds": round(found.seconds, 1), "plan": _plan_text(name)}


def cost(name: str) -> dict[str, Any]:
    """Make the whole trace of one model as PREPARE does, in a process of its own."""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "finetune_trainer", "trace"],
        input=json.dumps(request(name)),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    answer = json.loads(done.stdout.splitlines()[-1])
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "ways": len(answer["trace"]["rungs"]) + len(answer["trace"].get("lengths", ())),
        "seconds": round(time.monotonic() - start, 1),
        "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
        "host_bytes": used.ru_maxrss * 1024,
    }


def _plan_text(name: str) -> str:
    plan = BY_NAME[name].plan
    parts = [f"{plan.micro_batch_size} x {plan.sequence_length}"]
    parts += ["accumulated"] if plan.gradient_accumulation > 1 else []
    parts += [] if plan.gradient_checkpointing else ["activations kept"]
    parts += [] if plan.target_modules == "AllLinear" else ["attention only"]
    return ", ".join(parts)


def names_of(part: str) -> tuple[str, ...]:
    """Return the models of a part."""
    if part == "sizes":
        return tuple(TRACED)
    return tuple(model.name for model in (MODELS if part == "accuracy" else LARGE))


def read_results() -> dict[str, Any]:
    """Return the kept results."""
    return json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {}


def is_current(part: str, name: str) -> bool:
    """Return whether the kept results have a model, and a size is of its present inputs."""
    found = read_results().get(part, {}).get(name)
    return found is not None and (part != "sizes" or found["inputs"] == inputs(name))


def write(part: str, name: str, found: dict[str, Any]) -> None:
    """Put the result of a model into the file. Figures that depend on the machine get their day and the libraries."""
    results = read_results()
    if part != "sizes":
        tools = {tool: version(tool) for tool in TOOLS}
        found = {**found, "day": datetime.datetime.now(datetime.UTC).date().isoformat(), "tools": tools}
    entries = {**results.get(part, {}), name: found}
    results[part] = {known: entries[known] for known in names_of(part) if known in entries}
    save(results)


def save(results: dict[str, Any]) -> None:
    """Write the results, one model a line."""
    results = {"formula": BY_FORMULA, **{part: results[part] for part in PARTS if part in results}}
    sections = []
    for part, entries in results.items():
        lines = [f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items()]
        sections.append(f" {json.dumps(part)}: {{\n" + ",\n".join(lines) + "\n }")
    RESULTS.write_text("{\n" + ",\n".join(sections) + "\n}\n", encoding="utf-8")


def main() -> None:
    """Measure each model in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="models; all of the part by default")
    parser.add_argument("--only", choices=PARTS, help="one part; all by default")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--missing", action="store_true")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        warnings.simplefilter("ignore")
        measure = {"sizes": size, "accuracy": accuracy, "cost": cost}[options.only]
        print(json.dumps(measure(options.names[0])), flush=True)
        return
    for part in [options.only] if options.only else PARTS:
        for name in [known for known in names_of(part) if not options.names or known in options.names]:
            if options.missing and is_current(part, name):
                continue
            command = [sys.executable, "-m", "benchmarks.models", "--inside", "--only", part, name]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            print(json.dumps({"part": part, "model": name, **found}), flush=True)
            if options.write:
                write(part, name, found)


if __name__ == "__main__":
    main()
