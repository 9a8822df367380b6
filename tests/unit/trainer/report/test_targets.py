"""Target prompts: every form of the file, every way in which it can be wrong, and what counts as alike."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.report.coverage import TargetIndex
from finetune_trainer.report.targets import read_target_prompts
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.report_tables import analyze_turns

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.report_tables import Turns

WANTED = ["reset my password", "where is my order?"]
FORMS = {
    "text": "reset my password\n\n  where is my order?  \n",
    "text with a byte order mark": "\ufeffreset my password\r\nwhere is my order?",
    "text of JSON strings": '"reset my password"\n"where is my order?"\n',
    "JSON list of texts": json.dumps(WANTED),
    "JSON list of objects": json.dumps([{"prompt": text} for text in WANTED], indent=2),
    "JSON lines": "\n".join(json.dumps({"text": text}) for text in WANTED),
    "JSON lines of conversations": "\n".join(
        json.dumps({"messages": [
            {"role": "system", "content": "s"}, {"role": "user", "content": "first"},
            {"role": "assistant", "content": "a"}, {"role": "user", "content": text},
        ]})
        for text in WANTED
    ),
    "ShareGPT": "\n".join(json.dumps({"conversations": [{"from": "human", "value": text}]}) for text in WANTED),
    "parts": json.dumps([{"messages": [{"role": "user", "content": [{"type": "text", "text": text}]}]} for text in WANTED]),
    "prompt as messages": json.dumps([{"prompt": [{"role": "user", "content": text}]} for text in WANTED]),
    "mixed list": json.dumps([WANTED[0], {"instruction": WANTED[1]}]),
}  # fmt: skip
FAULTS = {
    b"": "found 0 that",
    b"\n \n": "found 0 that",
    b"[]": "found 0 that",
    b"caf\xe9": "byte 3",
    b'["a", 5]': "item 2: int",
    b'[{"answer": "a"}]': "item 1: an object with ['answer']",
    b'{"prompt": "a"}\nplain': "line 2",
    b'{"messages": [{"role": "assistant", "content": "a"}]}': "item 1",
    b'["half \\ud83d"]': "item 1: half of a surrogate pair",
    b'{"prompt": ' + b"[" * 100_000: "line 1",
    b"a\n" * 10_001: "found 10001 that",
}


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("form", list(FORMS))
def test_every_form_gives_the_prompts_in_order(form: str, tmp_path: Path) -> None:
    assert read_target_prompts(write(tmp_path / "prompts", FORMS[form].encode())) == WANTED


def test_text_that_only_looks_like_json_is_text(tmp_path: Path) -> None:
    text = '[INST] what is this\n"quoted" words\n'
    assert read_target_prompts(write(tmp_path / "p", text.encode())) == text.splitlines()


@pytest.mark.parametrize("content", list(FAULTS))
def test_a_bad_file_is_refused_by_its_name_and_place(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(StageError) as caught:
        read_target_prompts(write(tmp_path / "p", content))
    assert caught.value.reason is Reason.INVALID_DATASET
    assert caught.value.message.startswith("dataset.targetPrompts must hold ")
    assert FAULTS[content] in caught.value.message
    assert len(caught.value.message) < 600


@pytest.mark.parametrize("name", ["missing", "."])
def test_what_is_no_file_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(StageError) as caught:
        read_target_prompts(tmp_path / name)
    assert caught.value.reason is Reason.INVALID_DATASET


def nearest(target: str, *prompts: str) -> float:
    index = TargetIndex([target], prompts)
    for row, prompt in enumerate(prompts, start=1):
        index.add(row, prompt)
    (found,) = index.nearest()
    assert (found.row is None) == (found.nearest == 0)
    return found.nearest


@pytest.mark.parametrize(
    ("target", "prompt"),
    [
        ("reset my password please", "Please reset my password!"),
        ("How do I cancel an order?", "cancelling orders: how do I?"),
        ("refund for order 1234", "I want a refund for my order 99"),
        ("do you ship to Germany?", "Do you ship to Canada?"),
        ("法国的首都是哪里", "法国的首都在哪里"),
        ("फ्रांस की राजधानी क्या है?", "जर्मनी की राजधानी क्या है?"),
    ],
)
def test_a_prompt_in_other_order_or_form_is_like(target: str, prompt: str) -> None:
    assert nearest(target, "something else entirely", prompt, "and one more of no use") >= 0.5


@pytest.mark.parametrize(
    ("target", "prompt"),
    [
        ("Write me a haiku", "Where can I see my orders?"),
        ("What is the weather in Paris today?", "Summarise this report in two sentences"),
        ("Solve x^2 = 4", "my parcel has not arrived"),
        ("!!! ???", "!!! ???"),
    ],
)
def test_another_question_is_not(target: str, prompt: str) -> None:
    assert nearest(target, prompt) < 0.5


@given(
    target=st.text(min_size=1, max_size=60).filter(lambda text: any(map(str.isalnum, text))),
    others=st.lists(st.text(max_size=60), max_size=5),
)
@settings(max_examples=30, deadline=None)
def test_a_prompt_is_wholly_like_itself(target: str, others: list[str]) -> None:
    assert nearest(target, *others, target) == pytest.approx(1.0, abs=1e-4)


def test_uncovered_prompts_are_named_with_the_nearest_row(tmp_path: Path) -> None:
    rows: list[Turns] = [
        [(f"where is order {number} of customer {number}", "it is on its way")] for number in range(30)
    ]
    rows.append([("hello", "hi"), ("please reset my password", "done")])
    targets = write(tmp_path / "t.txt", b"where is order 77\nreset my password\nwrite a poem about the sea\n")
    found = analyze_turns(tmp_path, rows, target_prompts=targets)
    coverage = found.statistics.coverage
    assert coverage is not None
    assert (coverage.targets, coverage.covered) == (3, 2)
    assert [item.text for item in coverage.uncovered] == ["write a poem about the sea"]
    assert found.summary().document()["coverage"] == {"targets": 3, "covered": 2}
    assert "TargetPromptsUncovered" in {warning.code for warning in found.warnings}


def test_a_shared_instruction_is_compared_with_and_without(tmp_path: Path) -> None:
    """Targets may be written either way."""
    instruction = "read the following review with care and say in one word what the customer thinks about the product in it"
    reviews = [
        f"thing{number} broke after day{number} and nobody{number} helped{number}" for number in range(40)
    ]
    rows: list[Turns] = [[(f"{instruction} {review}", "bad")] for review in reviews]
    content = f"{instruction} {reviews[3]}\n{reviews[4]}\n".encode()
    coverage = analyze_turns(
        tmp_path, rows, target_prompts=write(tmp_path / "t", content)
    ).statistics.coverage
    assert coverage is not None
    assert coverage.covered == 2


def test_no_more_than_twenty_uncovered_prompts_are_kept(tmp_path: Path) -> None:
    content = "\n".join(f"unheard{number} of{number}" for number in range(50)).encode()
    rows: list[Turns] = [[("hello you", "hi")], [("good day", "hi")]]
    coverage = analyze_turns(
        tmp_path, rows, target_prompts=write(tmp_path / "t", content)
    ).statistics.coverage
    assert coverage is not None
    assert (coverage.covered, len(coverage.uncovered)) == (0, 20)
