"""What every measurement gets: folders, sizes and the device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.shapes import DRY, REAL, Size


class AbsentError(Exception):
    """A part that a case needs is not there; the message names it."""


@dataclass(frozen=True)
class Context:
    """`scratch` has checkpoints and workspaces, which later cases use again; `output` gets what people keep.

    `matrix_flops` is the measured rate of a matrix product in bf16, FLOP/s; None before it is measured.
    """

    scratch: Path
    output: Path
    dry: bool
    matrix_flops: float | None = None

    @property
    def size(self) -> Size:
        """The sizes of the run."""
        return DRY if self.dry else REAL

    @property
    def device(self) -> str:
        """`cuda`, or `cpu` in a dry run."""
        return "cpu" if self.dry else "cuda"

    @property
    def log(self) -> Path:
        """File for what libraries print, and for tracebacks."""
        return self.output / "log.txt"
