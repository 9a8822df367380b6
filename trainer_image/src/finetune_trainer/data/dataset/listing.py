"""Lists rows with their ids and labels as JSON lines that people and programs can check."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from finetune_trainer.contract.exit_codes import ExitCode, exit_code
from finetune_trainer.data.chat_template.template import ChatTemplate, load_tokenizer
from finetune_trainer.data.conversations.formats import parse_row
from finetune_trainer.data.dataset.counts import DatasetReport
from finetune_trainer.data.dataset.proving import prove, row_line
from finetune_trainer.data.dataset.row_source import open_source
from finetune_trainer.data.masking.masking import ControlTokens, Masker
from finetune_trainer.data.rows.reader import until_fault
from finetune_trainer.data.rows.rejection import RowRejected
from finetune_trainer.errors import StageError
from finetune_trainer.model.generation import end_token_ids

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def list_masks(
    tokenizer_folder: Path,
    dataset: Sequence[Path],
    maximum_length: int,
    reasoning: Any,
    format_name: str = "Auto",
    control_tokens: ControlTokens = "Reject",
) -> ExitCode:
    """Print one JSON line per row of the files with the tokenizer in `tokenizer_folder`; no model is needed.

    The exit code is that of the reason if the files cannot be read to their end, or if no row is accepted.
    """
    try:
        template = ChatTemplate(load_tokenizer(tokenizer_folder))
        samples = open_source(dataset, format_name).first_conversations(reasoning)
        masker = Masker(template, maximum_length, end_token_ids(tokenizer_folder), samples, control_tokens)
        print_rows(dataset, masker, reasoning, format_name)
    except StageError as error:
        print(f"{error.reason}: {error.message}", file=sys.stderr)
        return exit_code(error.reason)
    except OSError as error:
        print(f"the dataset must be readable files: {error}", file=sys.stderr)
        return ExitCode.PERMANENT
    return ExitCode.SUCCEEDED


def print_rows(paths: Sequence[Path], masker: Masker, reasoning: Any, format_name: str = "Auto") -> None:
    """Print one JSON line per row of the files; standard error gets their format and its reason.

    Raises StageError before any line if the files hold no rows, or rows of no known format; after the rows before the
    place where a file is broken; and after all rows if all are rejected.
    """
    source = open_source(paths, format_name)
    print(f"format {source.format}: {source.why}", file=sys.stderr)
    parse = partial(parse_row, format_name=source.format, reasoning=reasoning)
    faults: list[StageError] = []
    report = DatasetReport()
    for row in prove(until_fault(source.rows(), faults), masker, parse):
        print(row_line(row))
        report.rows += 1
        if isinstance(row.outcome, RowRejected):
            report.reject(row.number, row.outcome)
        else:
            report.keep(row.outcome)
    if faults:
        raise faults[0]
    report.require_kept()
