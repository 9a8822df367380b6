"""What must hold of every example, checked on the token ids themselves, whatever made them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune_trainer.data.example import IGNORED
from finetune_trainer.data.rows import RowReason, RowRefused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from finetune_trainer.data.grammar import Grammar
    from finetune_trainer.data.template import ChatTemplate


def require_example(
    template: ChatTemplate,
    grammar: Grammar,
    input_ids: Sequence[int],
    labels: Sequence[int],
    *,
    text: str,
    answers: Sequence[Sequence[str]],
) -> None:
    """Raise RowRefused(MaskUnprovable) unless the example is provably right.

    `text` is the rendered text that the ids stand for; `answers` the stripped texts to learn, turn by turn.
    """
    if len(input_ids) != len(labels):
        raise _broken("ids and labels differ in number")
    runs = labelled_runs(labels)
    if len(runs) != len(answers):
        raise _broken(f"{len(answers)} answers must be learned, {len(runs)} are")
    if runs[0][0] == 0:
        raise _broken("no prompt stands before the first answer")
    for (start, end), parts in zip(runs, answers, strict=True):
        if list(labels[start:end]) != list(input_ids[start:end]):
            raise _broken("a label differs from its id")
        if labels[end - 1] not in grammar.enders:
            raise _broken("an answer's last label is no end-of-turn token")
        learned = template.decode(input_ids[start:end])
        if not all(_contains(template, learned, part) for part in parts):
            raise _broken("the labels do not spell the whole answer")
    _require_bos(template, input_ids, text)
    decoded = template.decode(input_ids)
    if decoded != text and _letters(template, decoded) != _letters(template, text):
        raise _broken("the tokenizer cannot write all of the text: the ids decode to something else")


def labelled_runs(labels: Sequence[int]) -> list[tuple[int, int]]:
    """Return (start, end) of each unbroken run of learned positions."""
    runs = []
    start = None
    for position, label in enumerate(labels):
        if label != IGNORED and start is None:
            start = position
        elif label == IGNORED and start is not None:
            runs.append((start, position))
            start = None
    if start is not None:
        runs.append((start, len(labels)))
    return runs


def _require_bos(template: ChatTemplate, input_ids: Sequence[int], text: str) -> None:
    """A beginning-of-sequence token stands wherever the template wrote one, and nowhere else."""
    bos = template.bos_token
    if not bos or bos == template.eos_token:
        return
    written, found = (
        text.count(bos),
        list(input_ids).count(-1 if template.bos_id is None else template.bos_id),
    )
    if written != found:
        raise _broken(f"the template writes {written} beginning-of-sequence tokens, the ids have {found}")


def _contains(template: ChatTemplate, learned: str, part: str) -> bool:
    return part in learned or _letters(template, part) in _letters(template, learned)


def _letters(template: ChatTemplate, text: str) -> str:
    """Text without white space, as the tokenizer normalises it: decoders add and drop spaces at seams."""
    return "".join(template.normalise(text).split())


def _broken(detail: str) -> RowRefused:
    return RowRefused(RowReason.MASK_UNPROVABLE, "messages", detail)
