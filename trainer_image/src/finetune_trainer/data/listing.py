"""Rows with their ids and labels as JSON lines, for people and other programs to check."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from finetune_trainer.data.dataset import prove_rows, row_line
from finetune_trainer.data.masking import Masker
from finetune_trainer.data.template import ChatTemplate, load_tokenizer
from finetune_trainer.errors import StageError
from finetune_trainer.exitcodes import ExitCode, exit_code
from finetune_trainer.generation import end_token_ids

if TYPE_CHECKING:
    from pathlib import Path


def list_masks(tokenizer_folder: Path, dataset: Path, maximum_length: int, reasoning: Any) -> ExitCode:
    """Print one JSON line per row of `dataset` for the tokenizer in `tokenizer_folder`; no model is needed."""
    try:
        template = ChatTemplate(load_tokenizer(tokenizer_folder))
        print_rows(dataset, Masker(template, maximum_length, end_token_ids(tokenizer_folder)), reasoning)
    except StageError as error:
        print(f"{error.reason}: {error.message}", file=sys.stderr)
        return exit_code(error.reason)
    except OSError as error:
        print(f"the dataset must be a readable file: {error}", file=sys.stderr)
        return ExitCode.PERMANENT
    return ExitCode.SUCCEEDED


def print_rows(dataset: Path, masker: Masker, reasoning: Any) -> None:
    """Print one JSON line per row of `dataset`."""
    for row in prove_rows(dataset, masker, reasoning):
        print(row_line(row))
