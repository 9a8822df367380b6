"""The measured speeds of GPU products, from finished FineTuneJobs, as `cost.speeds` of the chart."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

import yaml
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.errors import InvalidSpecError
from finetune_operator.sizing.cost.duration import measured_efficiency
from finetune_operator.sizing.cost.speeds import fit_speed, reference_rates
from finetune_operator.sizing.cost.work import rows_of
from finetune_operator.sizing.ladder import training_plan
from finetune_operator.sizing.memory.shape import ShapeUnknownError, model_shape

from finetune_cli.errors import UsageError

UNKNOWN_PRODUCT = "Unknown"


def print_speeds(jobs: Iterable[Mapping[str, Any]], output: TextIO) -> int:
    """Print `cost.speeds` from these FineTuneJobs. Raises UsageError if none of them has a measured run."""
    jobs = list(jobs)
    found: dict[str, list[float]] = {}
    for job in jobs:
        run = measured_speed(job)
        if run is not None:
            found.setdefault(run[0], []).append(run[1])
    if not found:
        raise UsageError(
            f"at least one run must have a measured speed, found none among {len(jobs)} FineTuneJobs; a run counts if TRAIN "
            "succeeded with its plan on a GPU of a known product, and if its model is large enough to keep the GPU busy"
        )
    speeds = [
        fit_speed(product, efficiencies).model_dump(mode="json", by_alias=True)
        for product, efficiencies in sorted(found.items())
    ]
    print(f"# chart value, from {sum(map(len, found.values()))} runs", file=output)
    print(yaml.safe_dump({"cost": {"speeds": speeds}}, sort_keys=False), end="", file=output)
    return 0


def measured_speed(job: Mapping[str, Any]) -> tuple[str, float] | None:
    """The product of a job's succeeded attempt of TRAIN, and the share of its published speed that the training reached.

    None if the job has no such attempt, or if it was not measured. A run of another rung than that of the plan does not
    count, and neither does one on a CPU or on several GPUs, or one that a host has limited.
    """
    try:
        return _measured_speed(job)
    except (
        ArithmeticError,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        InvalidSpecError,
        ShapeUnknownError,
    ):
        return None


def _measured_speed(job: Mapping[str, Any]) -> tuple[str, float] | None:
    status = job["status"]
    attempts = [
        entry
        for entry in status.get("attempts") or ()
        if (entry["stage"], entry["outcome"]) == ("Train", "Succeeded")
        and "tokensPerSecond" in entry
        and "rung" not in entry
        and (entry.get("memory") or {}).get("allocatedBytes")
    ]
    rows = rows_of(status.get("dataset"))
    if not attempts or rows is None or attempts[-1]["gpuProduct"] == UNKNOWN_PRODUCT:
        return None
    last, planned = attempts[-1], status["plan"]["training"]
    if "gpusPerNode" in planned:
        # Several GPUs also exchange weights and gradients, so their speed is not that of one.
        return None
    spec = FineTuneJobSpec.parse(job["spec"])
    plan = training_plan(
        spec.training,
        planned["sequenceLength"],
        planned["microBatchSize"],
        checkpointing=planned["gradientCheckpointing"],
        optimizer=planned["optimizer"],
        weights=planned["weights"],
    )
    shape = model_shape(json.loads(status["model"]["config"]))
    product = str(last["gpuProduct"])
    efficiency = measured_efficiency(
        spec, shape, plan, rows, reference_rates(product), float(last["tokensPerSecond"])
    )
    return (product, efficiency) if efficiency is not None and 0 < efficiency <= 10 else None
