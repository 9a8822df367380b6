"""Warms up every Numba kernel with small inputs of production types."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune_trainer.data.dataset.counts import DatasetReport
from finetune_trainer.data.dataset.tables import TableWriter
from finetune_trainer.data.masking.example import IGNORED, Example
from finetune_trainer.quantization import dequantize, low_rank, nf4, rounding
from finetune_trainer.report.analysis import AnalysisSettings, analyze

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_END = 0  # the only control token
_ROWS = 12
_PROMPT = 40


def use_every_kernel(scratch: Path) -> None:
    """Use the loops over weights; analyze a table with near copies, leaks and target prompts in the folder `scratch`."""
    for module in (dequantize, low_rank, nf4, rounding):
        module.warm_up()
    training, validation = TableWriter(scratch / "training.arrow"), TableWriter(scratch / "validation.arrow")
    for row in range(1, _ROWS + 1):
        training.add(_example(row))
        validation.add(_example(row))
    training.add(_example(1).of_row(_ROWS + 1))
    for table in (training, validation):
        table.finish()
    targets = scratch / "targets.txt"
    targets.write_text("word1 word2\n", encoding="utf-8")
    report = DatasetReport(rows=_ROWS + 1, kept=_ROWS + 1)
    settings = AnalysisSettings((report,), {_END}, target_prompts=targets, trainable_parameters=1)
    analyze(training.path, validation.path, _decode, settings)


def _example(row: int) -> Example:
    prompt = [_END, *range(row, row + _PROMPT), _END]
    answer = [100 + row, 101 + row, _END]
    return Example(prompt + answer, [IGNORED] * len(prompt) + answer, row)


def _decode(ids: Sequence[int]) -> str:
    return " ".join("" if token == _END else f"word{token}" for token in ids)
