"""What the benchmark measures, in which order, for how long, and the values that each finished case must have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.gpu.shapes import Size

SECONDS = 530.0
"""Seconds of the whole benchmark; with the start of the command it stays below nine minutes."""
DRY_FACTOR = 10.0
"""A dry run may take longer for each part: its processors are shared, and nothing depends on its times."""

TRAINING_VALUES = (
    "model",
    "parameters",
    "rows",
    "tokensPerSecond",
    "share",
    "tokens",
    "seconds",
    "steps",
    "loss",
    "peakBytes",
    "gradientCheckpointing",
    "optimizer",
    "notes",
)
OURS_VALUES = (*TRAINING_VALUES, "batching", "attention", "kernels", "realTokens", "cudnn", "dequantized")
RANK_CASES = ("one process", "two replicas", "two with shared weights")
RANK_VALUES = (
    "model",
    "processes",
    "parallelism",
    "steps",
    "seconds",
    "tokensPerSecond",
    "tokensPerSecondPerGpu",
    "ofOneShare",
)
PROFILE_VALUES = ("model", "seconds", "busySeconds", "idleShare", "kernels", "syncs", "syncsPerStep")


@dataclass(frozen=True)
class Case:
    """One part of a measurement. Cases with the same `process` run in one process, one after another."""

    name: str
    process: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Measurement:
    """A measurement of at most `seconds`, whose cases are in `benchmarks/gpu/measurements/NAME.py`."""

    number: int
    name: str
    title: str
    seconds: float
    cases: tuple[Case, ...]
    gpus: int = 1
    """GPUs that it needs. On a machine with fewer, its cases are absent and take no time."""


def measurements(size: Size) -> tuple[Measurement, ...]:
    """Return all measurements in the order in which they run."""
    return (
        Measurement(
            1,
            "environment",
            "Environment",
            40,
            (
                Case("software", "all", ("versions", "python", "adaptations", "processors", "memoryBytes")),
                Case(
                    "device",
                    "all",
                    ("name", "memoryBytes", "driver", "matrixFlops", "matrixSize", "copyBytesPerSecond"),
                ),
            ),
        ),
        Measurement(
            2,
            "loading",
            "Loading a 4-bit checkpoint of PREPARE",
            65,
            (
                Case(
                    "checkpoint",
                    "all",
                    (
                        "model",
                        "quantizeSeconds",
                        "checkpointBytes",
                        "loadSeconds",
                        "modules",
                        "differingValues",
                        "loss",
                        "lossOnCpu",
                        "tolerance",
                        "equal",
                    ),
                ),
            ),
        ),
        Measurement(
            3,
            "memory",
            "Memory peaks beside the estimate",
            120,
            tuple(
                Case(
                    run.name,
                    "all",
                    (
                        "model",
                        "plan",
                        "batching",
                        "phases",
                        "estimatedPeakBytes",
                        "estimatedStaticBytes",
                        "estimatedDeviceBytes",
                        "allocatedBytes",
                        "reservedBytes",
                        "deviceBytes",
                    ),
                )
                for run in size.memory
            ),
        ),
        Measurement(4, "speed", "Tokens per second", 185, _speed(size)),
        Measurement(
            5,
            "ladder",
            "A real out-of-memory error and the ladder",
            40,
            (
                Case(
                    "ladder",
                    "all",
                    ("model", "deviceBytes", "estimatedBytes", "failedRungs", "rung", "steps", "seconds"),
                ),
            ),
        ),
        Measurement(
            6,
            "stop",
            "From SIGTERM to a verified checkpoint",
            35,
            (
                Case(
                    "stop",
                    "all",
                    (
                        "model",
                        "exitCode",
                        "stepAtSignal",
                        "checkpointStep",
                        "checkpointBytes",
                        "exitSeconds",
                        "verifySeconds",
                    ),
                ),
            ),
        ),
        Measurement(
            7,
            "start",
            "From the start of the process to the first step",
            45,
            tuple(
                Case(name, name, ("model", "activities", "firstStepSeconds", "compiledBytes", "exitCode"))
                for name in size.starts
            ),
        ),
        Measurement(
            8,
            "ranks",
            "Tokens per second of two GPUs",
            180,
            tuple(Case(name, name, RANK_VALUES) for name in RANK_CASES),
            gpus=2,
        ),
    )


def _speed(size: Size) -> tuple[Case, ...]:
    """The most important cases come first, because the time may end."""
    found = []
    for model in size.speed:
        found.append(
            Case(f"{model} roofline", f"{model} ours", ("model", "layers", "tokensPerSecond", "share"))
        )
        found += [Case(f"{model} {name}", f"{model} ours", OURS_VALUES) for name in OURS_FIRST]
        found += [Case(f"{model} {name}", f"{model} trl", TRAINING_VALUES) for name in TRL]
        found += [Case(f"{model} {name}", f"{model} liger", TRAINING_VALUES) for name in LIGER]
        found += [Case(f"{model} {name}", f"{model} ours", OURS_VALUES) for name in OURS_NEXT]
        found.append(Case(f"{model} profile", f"{model} ours", PROFILE_VALUES))
    return tuple(found)


OURS_FIRST = ("ours packed full", "ours packed full dequantized", "ours packed chats")
TRL = ("trl padded full", "trl padded chats", "trl packed chats")
LIGER = ("liger padded full",)
OURS_NEXT = (
    "ours grouped chats",
    "ours grouped chats cudnn",
    "ours packed full reference",
    "ours packed full paged-8bit",
)
"""Names of cases: trainer, batching, rows, and what differs from the trainer's own choice."""


def limit(measurement: Measurement, begun: float, now: float, ends: float, factor: float = 1) -> float:
    """Return the seconds that are left at `now` for a measurement that began at `begun`; 0 if none are.

    `ends` is the end of the whole benchmark. All times are of one monotonic clock.
    """
    return max(0.0, min(begun + measurement.seconds * factor, ends) - now)


def next_group(cases: Sequence[Case]) -> tuple[Case, ...]:
    """Return the first cases that run in one process."""
    if not cases:
        return ()
    for count, case in enumerate(cases):
        if case.process != cases[0].process:
            return tuple(cases[:count])
    return tuple(cases)


def missing_values(case: Case, values: Mapping[str, object]) -> tuple[str, ...]:
    """Return the names of the values that a finished case lacks."""
    return tuple(name for name in case.values if name not in values)
