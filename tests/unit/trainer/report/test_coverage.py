"""Coverage of target prompts: similar prompts, and the uncovered prompts that the report names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from finetune_trainer.report.coverage import TargetIndex
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.report_tables import analyze_turns

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.report_tables import Turns


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


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
def test_a_prompt_in_another_order_or_form_is_similar(target: str, prompt: str) -> None:
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
def test_another_question_is_not_similar(target: str, prompt: str) -> None:
    assert nearest(target, prompt) < 0.5


@given(
    target=st.text(min_size=1, max_size=60).filter(lambda text: any(map(str.isalnum, text))),
    others=st.lists(st.text(max_size=60), max_size=5),
)
@settings(max_examples=30, deadline=None)
def test_a_prompt_is_fully_similar_to_itself(target: str, others: list[str]) -> None:
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
    """Targets can contain the instruction or omit it."""
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
