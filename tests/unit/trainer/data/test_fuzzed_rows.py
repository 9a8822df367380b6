"""Reader, format, parser and masks process ten thousand rows, half of them spoiled."""

from __future__ import annotations

from functools import partial
from random import Random
from typing import TYPE_CHECKING

import pytest
from finetune_trainer.data.chat_template.template import ChatTemplate
from finetune_trainer.data.conversations.formats import detect_format, parse_row
from finetune_trainer.data.dataset.proving import prove
from finetune_trainer.data.masking.example import Example
from finetune_trainer.data.masking.masking import Masker
from finetune_trainer.data.rows.reader import read_rows
from finetune_trainer.data.rows.rejection import RowReason, RowRejected

from tests.support.chat_templates.real_tokenizers import RealTokenizers
from tests.support.row_mutations import MUTATIONS, good_row, line_of, plain_row
from tests.support.tiny_models import CHATML

if TYPE_CHECKING:
    from pathlib import Path

ROWS = 10_000
MAXIMUM_LENGTH = 2048


@pytest.fixture(scope="module")
def masker(tokenizers: RealTokenizers) -> Masker:
    tokenizer = tokenizers.load("qwen")
    tokenizer.chat_template = CHATML
    return Masker(ChatTemplate(tokenizer), MAXIMUM_LENGTH)


def outcomes(path: Path, masker: Masker) -> dict[int, list[Example] | RowRejected]:
    detection = detect_format(read_rows([path]))
    parse = partial(parse_row, format_name=detection.format, reasoning="Keep")
    return {row.number: row.outcome for row in prove(read_rows([path]), masker, parse)}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_every_spoiled_row_has_its_reason_and_affects_no_other_row(
    tmp_path: Path, masker: Masker, seed: int
) -> None:
    """Each mutation gives exactly its reason; the other rows give the same result as in a separate file."""
    random = Random(seed)  # noqa: S311 -- names a file, no secret
    lines: list[bytes] = []
    expected: dict[int, tuple[str, RowReason]] = {}
    for number in range(1, ROWS + 1):
        if random.random() < 0.5:
            lines.append(line_of(good_row(random), random))
            continue
        mutation = random.choice(MUTATIONS)
        lines.append(mutation.line(plain_row(random), random))
        expected[number] = (mutation.name, mutation.reason)
    mixed, clean = tmp_path / "mixed", tmp_path / "clean"
    mixed.write_bytes(b"\n".join(lines))
    good = [number for number in range(1, ROWS + 1) if number not in expected]
    clean.write_bytes(b"\n".join(lines[number - 1] for number in good))
    found = outcomes(mixed, masker)
    assert list(found) == list(range(1, ROWS + 1))
    wrong = [
        (number, name, reason, result)
        for number, (name, reason) in expected.items()
        if not isinstance(result := found[number], RowRejected) or result.reason is not reason
    ]
    assert wrong == [], [lines[number - 1][:400] for number, *_ in wrong[:5]]
    alone = outcomes(clean, masker)
    assert [found[number] for number in good] == list(alone.values())
    assert all(isinstance(result, list) for result in alone.values())
    assert {name for name, _ in expected.values()} == {mutation.name for mutation in MUTATIONS}
