"""Turns files of rows into tables of proven examples, in steps that survive a killed pod.

Rows are proven in segments of a fixed number. Each segment becomes a part file. Then the ledger records in one
transaction its conversations and the position in the source. After a restart, work continues after the last segment.
When all rows are proven, the parts are split into the two tables.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from finetune_trainer.contract.result import FormatResult, LearnedExample, TablesResult
from finetune_trainer.contract.run_spec import ValidationFraction
from finetune_trainer.data.conversations.formats import parse_row
from finetune_trainer.data.dataset.counts import DatasetReport, has_empty_answer, has_reasoning
from finetune_trainer.data.dataset.ledger import RowLedger
from finetune_trainer.data.dataset.proving import ProvenRow, prove
from finetune_trainer.data.dataset.remaining import require_examples
from finetune_trainer.data.dataset.row_source import RowSource
from finetune_trainer.data.dataset.split import conversation_digest, sample_key
from finetune_trainer.data.dataset.tables import TableWriter, stream_examples
from finetune_trainer.data.masking.example import IGNORED, Example
from finetune_trainer.data.rows.reader import until_fault
from finetune_trainer.data.rows.rejection import RowRejected
from finetune_trainer.errors import StageError
from finetune_trainer.workspace.layout import digest_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from finetune_trainer.contract.run_spec import Dataset
    from finetune_trainer.data.masking.masking import Masker
    from finetune_trainer.telemetry.reporter import Reporter
    from finetune_trainer.workspace.layout import WorkspaceLayout

SEGMENT_ROWS = 10_000
_LEARNED_CHARACTERS = 512
_TRAINING, _VALIDATION = "training", "validation"
_NAMES = {_TRAINING: "dataset", _VALIDATION: "validation dataset"}


@dataclass(frozen=True)
class BuiltDataset:
    """The tables' part of the result, and the counts of rows by source."""

    result: TablesResult
    reports: dict[str, DatasetReport]


class DatasetBuilder:
    """Builds both tables of one run.

    `inputs` is a digest of everything that the tables depend on. `redact` removes secrets from quoted rows. The ledger
    is updated every `segment_rows` rows.
    """

    def __init__(
        self,
        settings: Dataset,
        masker: Masker,
        seed: int,
        layout: WorkspaceLayout,
        inputs: str,
        progress: Reporter,
        redact: Callable[[str], str] = str,
        segment_rows: int = SEGMENT_ROWS,
    ) -> None:
        self._settings = settings
        self._masker = masker
        self._seed = seed
        self._layout = layout
        self._progress = progress
        self._redact = redact
        self._segment_rows = segment_rows
        self._ledger = RowLedger(layout.dataset_parts / "rows.sqlite", inputs)

    def build(self, training: RowSource, validation: RowSource | None) -> BuiltDataset:
        """Prove all rows and write both tables; `validation` is None if a fraction is held out.

        Raises StageError with MalformedDataset or InvalidDataset; `reports` then returns the counts so far.
        """
        # Held-out rows come first, so that training can leave out rows that are also held out.
        sources = {_VALIDATION: validation, _TRAINING: training}
        given = {name: source for name, source in sources.items() if source is not None}
        for name, source in given.items():
            self._prove(name, source)
        reports = self.reports()
        for name in given:
            reports[name].require_acceptable(self._settings.rejected_rows.maximum_fraction, _NAMES[name])
        if isinstance(self._settings.validation, ValidationFraction):
            self._ledger.choose_held_out(_TRAINING, self._settings.validation.fraction)
        tables = self._split()
        trained, held_out = tables[_TRAINING], tables[_VALIDATION]
        require_examples(trained.count, held_out.count, reports[_TRAINING], reports.get(_VALIDATION))
        report = reports[_TRAINING]
        first = next(stream_examples(self._layout.training_table))
        learned = self._masker.template.decode([label for label in first.labels if label != IGNORED])
        result = TablesResult(
            digest=digest_of([trained.digest.text(), held_out.digest.text()]),
            rows=report.rows,
            kept=report.kept,
            duplicates=report.duplicates + report.held_out_copies,
            rejected={reason.value: count for reason, count in sorted(report.rejected.items())},
            training_examples=trained.count,
            validation_examples=held_out.count,
            supervised_tokens=report.supervised_tokens,
            longest_example=max(item.longest_example for item in reports.values()),
            training_tokens=trained.tokens,
            shortened=report.shortened,
            format=FormatResult(name=training.format, why=training.why),
            example=LearnedExample(row=first.row, learned=learned[:_LEARNED_CHARACTERS]),
        )
        return BuiltDataset(result, reports)

    def reports(self) -> dict[str, DatasetReport]:
        """Return the counts of the rows proven so far, by source."""
        states = {name: self._ledger.state(name) for name in (_TRAINING, _VALIDATION)}
        return {
            name: DatasetReport.from_state(state["report"], self._redact)
            for name, state in states.items()
            if state
        }

    def close(self) -> None:
        """Close the files; another process can continue with the rows proven so far."""
        self._ledger.close()

    def discard_parts(self) -> None:
        """Remove everything except the tables; call it when they are finished."""
        self._ledger.close()
        shutil.rmtree(self._layout.dataset_parts)

    def _prove(self, name: str, source: RowSource) -> None:
        """Write the rows of a source into parts, from the position that the ledger records."""
        state = self._ledger.state(name) or {"parts": 0, "report": DatasetReport().to_state(), "done": False}
        if state["done"]:
            return
        report, parts = DatasetReport.from_state(state["report"], self._redact), state["parts"]
        parse = partial(parse_row, format_name=source.format, reasoning=self._settings.reasoning)
        faults: list[StageError] = []
        remaining = islice(until_fault(source.rows(), faults), report.rows, None)
        rows = prove(remaining, self._masker, parse)
        size = source.size
        done = False
        while not done:
            part = TableWriter(self._part(name, parts))
            before = report.rows
            for row in islice(rows, self._segment_rows):
                self._progress.update("ProvingRows", row.offset, size)
                self._enter(name, row, report, part)
            part.finish()
            parts += 1
            # A broken file is not read to its end, but the report contains the rows before the fault.
            ended = report.rows - before < self._segment_rows
            done = ended and not faults
            self._ledger.commit({name: {"parts": parts, "report": report.to_state(), "done": done}})
            if ended and faults:
                raise faults[0]

    def _enter(self, name: str, row: ProvenRow, report: DatasetReport, part: TableWriter) -> None:
        report.rows += 1
        if isinstance(row.outcome, RowRejected):
            report.reject(row.number, row.outcome, row.content)
            return
        if row.conversation is None:
            raise ValueError("an accepted row must have a conversation")
        digest = conversation_digest(row.conversation)
        known = self._ledger.add(digest, name, row.number, sample_key(digest, self._seed))
        if known is not None:
            if known == name:
                report.duplicates += 1
            else:
                report.held_out_copies += 1
            return
        conversation = row.conversation
        report.keep(row.outcome, reasoning=has_reasoning(conversation), empty=has_empty_answer(conversation))
        for example in row.outcome:
            part.add(example.of_row(row.number))

    def _split(self) -> dict[str, TableWriter]:
        """Write the tables and return them."""
        tables = {_TRAINING: self._layout.training_table, _VALIDATION: self._layout.validation_table}
        writers = {name: TableWriter(path) for name, path in tables.items()}
        for example in self._examples(_VALIDATION):
            writers[_VALIDATION].add(example)
        chosen = self._ledger.held_out()
        next_chosen = next(chosen, None)
        for example in self._examples(_TRAINING):
            while next_chosen is not None and next_chosen < example.row:
                next_chosen = next(chosen, None)
            if example.row == next_chosen:
                writers[_VALIDATION].add(example)
                continue
            writers[_TRAINING].add(example)
        for writer in writers.values():
            writer.finish()
        return writers

    def _part(self, name: str, number: int) -> Path:
        return self._layout.dataset_parts / f"{name}-{number:05d}.arrow"

    def _examples(self, name: str) -> Iterator[Example]:
        state = self._ledger.state(name)
        for number in range(state["parts"] if state else 0):
            yield from stream_examples(self._part(name, number))
