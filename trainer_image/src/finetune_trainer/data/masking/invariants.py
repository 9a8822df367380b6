"""Checks the rules for every example on the token ids themselves, whatever code produced them."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from finetune_trainer.data.masking.escaping import without_marks
from finetune_trainer.data.masking.example import IGNORED, Example
from finetune_trainer.data.rows.rejection import RowReason, RowRejected

if TYPE_CHECKING:
    from collections.abc import Sequence

    from finetune_trainer.data.chat_template.template import ChatTemplate
    from finetune_trainer.data.masking.grammar import Grammar


def require_example(
    template: ChatTemplate,
    grammar: Grammar,
    example: Example,
    *,
    runs: Sequence[tuple[int, int]],
    text: str,
    answers: Sequence[Sequence[str]],
) -> None:
    """Raise RowRejected(MaskUnprovable) unless the example is provably right.

    `runs` are the (start, end) of the ids that must be learned, turn by turn, and no others. `answers` are the stripped
    texts that each run must spell. `text` is the rendered text of all ids. Both may have the marks of escaped mentions.
    """
    ids = example.input_ids
    if len(runs) != len(answers):
        raise _broken(f"{len(answers)} answers must be learned, found {len(runs)}")
    _require_labels(grammar, ids, example.labels, runs)
    bounds = [0, *(bound for run in runs for bound in run)]
    pieces = [ids[start:end] for start, end in pairwise(bounds)]
    texts = template.encoder.decode_each(pieces)
    for learned, parts in zip(texts[1::2], answers, strict=True):
        if not all(_contains(template, learned, without_marks(part)) for part in parts):
            raise _broken("the labels do not spell the whole answer")
    _require_bos(template, ids, text)
    text = without_marks(text)
    if "".join(texts) == text:
        return
    # Decoders may treat the beginning of a sequence differently, so the whole text decides.
    decoded = template.decode(ids)
    if decoded != text and _letters(template, decoded) != _letters(template, text):
        raise _broken("the tokenizer cannot write all of the text: the ids decode to something else")


def _require_labels(
    grammar: Grammar, ids: list[int], labels: list[int], runs: Sequence[tuple[int, int]]
) -> None:
    """Require that only the runs have labels, and that each run ends a turn."""
    if len(ids) != len(labels) or runs[-1][1] != len(ids):
        raise _broken("ids and labels differ in number, or a token follows the last answer")
    position = 0
    for start, end in runs:
        if start <= position or end <= start:
            raise _broken("an answer is empty, or the token before it is learned")
        if labels[position:start] != [IGNORED] * (start - position):
            raise _broken("a token before an answer is learned")
        if labels[start:end] != ids[start:end] or IGNORED in ids[start:end]:
            raise _broken("a label differs from its id")
        if labels[end - 1] not in grammar.stop_tokens:
            raise _broken("the last label of an answer is not a stop token")
        position = end


def _require_bos(template: ChatTemplate, input_ids: list[int], text: str) -> None:
    """Require as many beginning-of-sequence tokens as the template wrote."""
    bos = template.bos_token
    if not bos or bos == template.eos_token:
        return
    written, found = text.count(bos), input_ids.count(-1 if template.bos_id is None else template.bos_id)
    if written != found:
        raise _broken(f"the template writes {written} beginning-of-sequence tokens, the ids have {found}")


def _contains(template: ChatTemplate, learned: str, part: str) -> bool:
    return part in learned or _letters(template, part) in _letters(template, learned)


def _letters(template: ChatTemplate, text: str) -> str:
    """Return normalized text without white space, because decoders add and drop spaces at borders."""
    return "".join(template.encoder.normalize(text).split())


def _broken(detail: str) -> RowRejected:
    return RowRejected(RowReason.MASK_UNPROVABLE, "messages", detail)
