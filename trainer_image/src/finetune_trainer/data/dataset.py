"""From files of rows to tables of proven examples."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from finetune_trainer.contract import ValidationFraction
from finetune_trainer.data.conversation import Conversation, parse_conversation
from finetune_trainer.data.example import IGNORED, Example
from finetune_trainer.data.reader import Row, read_rows
from finetune_trainer.data.report import DatasetReport
from finetune_trainer.data.rows import RowRefused
from finetune_trainer.data.split import conversation_digest, draw, held_out_rows
from finetune_trainer.data.tables import TableWriter, read_table
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.workspace import digest_of, write_json_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from finetune_trainer.contract import Dataset
    from finetune_trainer.data.masking import Masker
    from finetune_trainer.telemetry import Reporter
    from finetune_trainer.workspace import WorkspaceLayout

_BATCH = 64
_LEARNED_CHARACTERS = 512


@dataclass(frozen=True)
class ProvenRow:
    """One row with its conversation and examples, or why it was refused."""

    number: int
    outcome: list[Example] | RowRefused
    conversation: Conversation | None
    offset: int


def prove_rows(path: Path, masker: Masker, reasoning: Any) -> Iterator[ProvenRow]:
    """Yield every row of a file with its examples or its refusal, in order; memory does not grow with rows."""
    rows = read_rows(path)
    while batch := list(islice(rows, _BATCH)):
        parsed = [_parse(row, reasoning) for row in batch]
        conversations = [item for item in parsed if isinstance(item, Conversation)]
        outcomes = iter(masker.examples(conversations))
        for row, item in zip(batch, parsed, strict=True):
            if isinstance(item, RowRefused):
                yield ProvenRow(row.number, item, None, row.offset)
            else:
                yield ProvenRow(row.number, next(outcomes), item, row.offset)


def build_dataset(
    settings: Dataset,
    training: Path,
    validation: Path | None,
    masker: Masker,
    seed: int,
    layout: WorkspaceLayout,
    progress: Reporter,
) -> dict[str, Any]:
    """Write both tables and the report; return the `dataset` member of the result.

    `validation` is the held-out file, None where a fraction of the training rows is held out. Raises
    StageError with MalformedDataset or InvalidDataset.
    """
    seen: set[bytes] = set()
    reports = {"dataset": DatasetReport()}
    held_out = TableWriter(layout.validation_table)
    if validation is not None:
        # First, so that a training row that is also held out can be left out of training.
        reports["validation dataset"] = DatasetReport()
        _fill(validation, masker, settings, reports["validation dataset"], progress, seen, held_out)
    spool = TableWriter(layout.training_table.with_name("proven.arrow"))
    lots = _fill(training, masker, settings, reports["dataset"], progress, seen, spool, seed=seed)
    spool.finish()
    for name, report in reports.items():
        report.require_acceptable(settings.rejected_rows.maximum_fraction, name)
    chosen: frozenset[int] = frozenset()
    if isinstance(settings.validation, ValidationFraction):
        chosen = held_out_rows(lots, settings.validation.fraction)
    trained = TableWriter(layout.training_table)
    first_example: tuple[int, Example] | None = None
    for row, example in read_table(spool.path):
        if row in chosen:
            held_out.add(row, example)
            continue
        trained.add(row, example)
        first_example = first_example or (row, example)
    spool.path.unlink()
    trained.finish()
    held_out.finish()
    if first_example is None or not held_out.count:
        empty = "training" if first_example is None else "validation"
        raise StageError(
            Reason.INVALID_DATASET,
            f"at least one {empty} example must be left, found none among {reports['dataset'].kept} kept rows; "
            "add rows or change dataset.validation",
        )
    report = reports["dataset"]
    digest = digest_of([trained.digest.text(), held_out.digest.text()])
    write_json_atomically(
        layout.dataset_report, {"digest": digest, **{name: item.document() for name, item in reports.items()}}
    )
    result: dict[str, Any] = {
        "digest": digest,
        "rows": report.rows,
        "kept": report.kept,
        "duplicates": report.duplicates,
        "rejected": {reason.value: count for reason, count in sorted(report.refused.items())},
        "trainingExamples": trained.count,
        "validationExamples": held_out.count,
        "supervisedTokens": report.supervised_tokens,
        "longestExample": max(item.longest_example for item in reports.values()),
        "warnings": _warnings(report),
    }
    row, example = first_example
    learned = masker.template.decode([label for label in example.labels if label != IGNORED])
    result["example"] = {"row": row, "learned": learned[:_LEARNED_CHARACTERS]}
    return result


def _parse(row: Row, reasoning: Any) -> Conversation | RowRefused:
    if isinstance(row.value, RowRefused):
        return row.value
    try:
        return parse_conversation(row.value, reasoning)
    except RowRefused as refusal:
        return refusal


def _fill(
    path: Path,
    masker: Masker,
    settings: Dataset,
    report: DatasetReport,
    progress: Reporter,
    seen: set[bytes],
    table: TableWriter,
    seed: int = 0,
) -> dict[int, int]:
    """Put a file's proven rows, repetitions left out, into `table`; return the lot that each row drew."""
    size = path.stat().st_size
    lots: dict[int, int] = {}
    for row in prove_rows(path, masker, settings.reasoning):
        report.rows += 1
        progress.update("ProvingRows", row.offset, size)
        if isinstance(row.outcome, RowRefused):
            report.refuse(row.number, row.outcome)
            continue
        if row.conversation is None:
            raise ValueError("a row without refusal must have a conversation")
        digest = conversation_digest(row.conversation)
        if digest in seen:
            report.duplicates += 1
            continue
        seen.add(digest)
        lots[row.number] = draw(digest, seed)
        report.keep(row.outcome)
        for example in row.outcome:
            table.add(row.number, example)
    return lots


def _warnings(report: DatasetReport) -> list[str]:
    warnings = []
    if report.duplicates:
        warnings.append(f"{report.duplicates} of {report.rows} rows repeat another row and were left out")
    refused = sum(report.refused.values())
    if refused:
        counts = ", ".join(f"{count} {reason}" for reason, count in report.refused.most_common(4))
        warnings.append(f"{refused} of {report.rows} rows were refused: {counts}")
    return warnings


def row_line(row: ProvenRow) -> str:
    """One row's examples or refusal as a line of JSON."""
    refused = isinstance(row.outcome, RowRefused)
    examples = [] if isinstance(row.outcome, RowRefused) else row.outcome
    document: dict[str, Any] = {
        "row": row.number,
        "accepted": not refused,
        "reason": row.outcome.reason.value if isinstance(row.outcome, RowRefused) else None,
        "examples": [{"input_ids": item.input_ids, "labels": item.labels} for item in examples],
    }
    if isinstance(row.outcome, RowRefused):
        document["field"] = row.outcome.field
        document["detail"] = row.outcome.detail
    return json.dumps(document, ensure_ascii=False)
