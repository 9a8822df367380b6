from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from finetune_trainer.data.masking.example import IGNORED, Example
from finetune_trainer.data.masking.invariants import require_example
from finetune_trainer.data.rows.rejection import RowReason, RowRejected

from tests.support.masks import MASKER

TEMPLATE, GRAMMAR = MASKER.template, MASKER.grammar
PROMPT = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
ANSWER = "it is 4<|im_end|>"
NEXT = "\n<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\n"


def ids(text: str) -> list[int]:
    (found,) = TEMPLATE.encode([text])
    return found


@dataclass
class Checked:
    """A right example with two turns. Each test breaks one part of it."""

    pieces: list[list[int]] = field(
        default_factory=lambda: [ids(text) for text in (PROMPT, ANSWER, NEXT, ANSWER)]
    )
    text: str = PROMPT + ANSWER + NEXT + ANSWER
    answers: list[list[str]] = field(default_factory=lambda: [["it is 4"], ["it is 4"]])
    labels: list[int] | None = None
    runs: list[tuple[int, int]] | None = None

    def check(self) -> None:
        ends = [sum(map(len, self.pieces[: count + 1])) for count in range(len(self.pieces))]
        right = [
            token if number % 2 else IGNORED for number, piece in enumerate(self.pieces) for token in piece
        ]
        example = Example([token for piece in self.pieces for token in piece], self.labels or right)
        runs = self.runs or [(ends[0], ends[1]), (ends[2], ends[3])]
        require_example(TEMPLATE, GRAMMAR, example, runs=runs, text=self.text, answers=self.answers)

    def fault(self) -> str:
        with pytest.raises(RowRejected) as caught:
            self.check()
        assert caught.value.reason is RowReason.MASK_UNPROVABLE
        return caught.value.detail


def changed(labels: list[int], position: int, label: int) -> list[int]:
    return [*labels[:position], label, *labels[position + 1 :]]


def test_a_right_example_passes() -> None:
    Checked().check()


def test_each_answer_needs_exactly_one_run() -> None:
    assert Checked(answers=[["it is 4"]]).fault() == "1 answers must be learned, found 2"


def test_a_learned_token_of_the_prompt_is_found() -> None:
    pieces = Checked().pieces
    right = [token if number % 2 else IGNORED for number, piece in enumerate(pieces) for token in piece]
    assert Checked(labels=changed(right, 0, pieces[0][0])).fault() == "a token before an answer is learned"


@pytest.mark.parametrize("label", [IGNORED, 0])
def test_a_label_in_an_answer_that_differs_from_its_id_is_found(label: int) -> None:
    pieces = Checked().pieces
    right = [token if number % 2 else IGNORED for number, piece in enumerate(pieces) for token in piece]
    assert Checked(labels=changed(right, len(pieces[0]), label)).fault() == "a label differs from its id"


def test_labels_that_are_fewer_than_ids_are_found() -> None:
    assert "differ in number" in Checked(labels=[IGNORED]).fault()


def test_an_answer_without_a_stop_token_at_its_end_is_found() -> None:
    checked = Checked(text=PROMPT + ANSWER + NEXT + "it is 4")
    checked.pieces[3] = ids("it is 4")
    assert checked.fault() == "the last label of an answer is not a stop token"


def test_two_answers_with_nothing_between_them_are_found() -> None:
    checked = Checked()
    first, end = len(checked.pieces[0]), sum(map(len, checked.pieces))
    checked.runs = [(first, end - 1), (end - 1, end)]
    assert checked.fault() in {
        "a label differs from its id",
        "the last label of an answer is not a stop token",
    }


def test_labels_that_do_not_spell_the_whole_answer_are_found() -> None:
    assert (
        Checked(answers=[["it is 4"], ["it is 4 and more"]]).fault()
        == "the labels do not spell the whole answer"
    )


def test_ids_that_decode_to_another_text_are_found() -> None:
    assert "decode to something else" in Checked(text=PROMPT + ANSWER + NEXT + "other" + ANSWER).fault()


def test_a_missing_beginning_of_sequence_token_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    written: dict[str, Any] = {"bos_token": "<|im_start|>", "bos_id": ids("<|im_start|>")[0]}
    for name, value in written.items():
        monkeypatch.setattr(TEMPLATE, name, value)
    Checked().check()
    fault = Checked(text="<|im_start|>" + PROMPT + ANSWER + NEXT + ANSWER).fault()
    assert fault == "the template writes 5 beginning-of-sequence tokens, the ids have 4"
