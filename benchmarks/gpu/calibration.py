"""The calibration of the memory estimate from the measured runs: the file that `finetune plan --calibration` reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from finetune_cli.calibrate import STATIC_TERMS, as_document
from finetune_operator.sizing.memory.calibration import Run, fit_calibration
from finetune_operator.sizing.memory.profile import ProfileError
from finetune_operator.sizing.memory.terms import Estimate

from benchmarks.gpu.lines import Line


def static_bytes(estimated: Estimate) -> int:
    """Return the bytes of an estimate's largest phase that do not depend on the batch."""
    return sum(
        term.bytes
        for term in estimated.terms
        if term.phase == estimated.bottleneck and term.name in STATIC_TERMS
    )


def measured_runs(lines: Sequence[Line]) -> list[Run]:
    """Return the runs of the lines of measurement 3."""
    return [
        Run(
            estimated_peak=line.values["estimatedPeakBytes"],
            estimated_static=line.values["estimatedStaticBytes"],
            estimated_device=line.values["estimatedDeviceBytes"],
            measured_allocated=line.values["allocatedBytes"],
            measured_reserved=line.values["reservedBytes"],
            measured_device=line.values["deviceBytes"],
        )
        for line in lines
        if line.measurement == "memory" and line.status == "measured"
    ]


def write_calibration(lines: Sequence[Line], path: Path) -> bool:
    """Write the calibration as JSON, which is YAML, too. Too few runs leave no file; return whether there is one."""
    path.unlink(missing_ok=True)
    try:
        fitted = fit_calibration(measured_runs(lines), "benchmark-gpu")
    except ProfileError:
        return False
    path.write_text(json.dumps({"calibration": as_document(fitted)}, indent=2) + "\n", encoding="utf-8")
    return True
