"""The report on the quickstart's rows, with real tokenizers and templates of many shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from finetune_trainer.contract.run_spec import Thresholds
from finetune_trainer.data.chat_template.template import ChatTemplate, load_tokenizer
from finetune_trainer.data.conversations.conversation import Conversation
from finetune_trainer.data.dataset.counts import DatasetReport
from finetune_trainer.data.masking.masking import Masker
from finetune_trainer.report.analysis import Analysis, AnalysisSettings, analyze
from finetune_trainer.report.prompts import user_frame

from tests.support.chat_templates.matrix import fit, stop_ids
from tests.support.chat_templates.real_tokenizers import RealTokenizers
from tests.support.chat_templates.templates import cases
from tests.support.report_tables import END, START, Words, analyze_turns, single_turns, write_table
from tests.support.repository import ROOT

if TYPE_CHECKING:
    from finetune_trainer.data.masking.example import Example

DATASETS = ROOT / ".finetune" / "volumes" / "quickstart" / "datasets"
SYSTEM = (
    "You are the assistant of an airline's operations centre. Read the sentence of the user, find the airport in it, and "
    "reply with the airport as JSON: its IATA code, its name, its city, the code of its country, and its elevation in "
    "feet. Write nothing else, no explanation and no apology; if a value is not in the sentence, write null in its place. "
    "Codes are upper case, names are written as in the sentence, and numbers are whole."
)
COPIES = 10
LEAKS = 4
# Role headers of control tokens or of text, and system prompts in the user's turn with or without markup.
TEMPLATES = ["chatml", "trl:llama3", "mistral_v01", "mistral_v03", "llama2", "zephyr"]


def airports(name: str) -> list[tuple[str, str]]:
    lines = (DATASETS / f"airports.{name}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line)["messages"] for line in lines]
    return [(messages[1]["content"], messages[2]["content"]) for messages in rows]


def examples(masker: Masker, rows: list[tuple[str, str]]) -> list[list[Example]]:
    conversations = [
        Conversation([
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": answer},
        ])
        for prompt, answer in rows
    ]  # fmt: skip
    outcomes = masker.examples(conversations)
    assert all(isinstance(outcome, list) for outcome in outcomes), outcomes[0]
    return [outcome for outcome in outcomes if isinstance(outcome, list)]


def analyze_airports(folder: Path, template: ChatTemplate, masker: Masker) -> Analysis:
    """Analyze the quickstart's rows with 10 near copies in the training rows and 4 in the validation rows."""
    training, validation = airports("train"), airports("validation")
    copies = [(f"{prompt} Thanks.", answer) for prompt, answer in training[:COPIES]]
    leaks = [(f"Hello! {prompt}", answer) for prompt, answer in training[50 : 50 + LEAKS]]
    targets = folder / "targets.jsonl"
    wanted = [prompt for prompt, _ in training[100:130]] + ["Write a short poem about the sea."]
    targets.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in wanted), encoding="utf-8")
    settings = AnalysisSettings(
        reports=(DatasetReport(rows=250, kept=250),),
        special_ids=template.special_ids,
        # Only the exact text of a prompt is that similar, so the whole frame must be removed.
        thresholds=Thresholds(target_similarity=0.999),
        frame=user_frame(template),
        trainable_parameters=4_884_480,
        target_prompts=targets,
    )
    return analyze(
        write_table(folder / "training.arrow", examples(masker, training + copies)),
        write_table(folder / "validation.arrow", examples(masker, validation + leaks)),
        template.decode,
        settings,
    )


def require_found(analysis: Analysis) -> None:
    statistics = analysis.statistics
    near = statistics.near_duplicates
    assert (near.rows, near.of) == (COPIES, 240 + COPIES)
    assert [(pair.row, pair.other) for pair in near.examples] == [(241 + n, 1 + n) for n in range(COPIES)]
    assert (statistics.leaked.rows, statistics.leaked.of) == (LEAKS, 40 + LEAKS)
    assert [pair.other for pair in statistics.leaked.examples] == [51 + number for number in range(LEAKS)]
    assert (statistics.answers.distinct, statistics.answers.repeated) == (240, 2 * COPIES)
    assert statistics.prompts.distinct == 240 + COPIES
    assert statistics.prompts.variety is not None
    assert 0.3 < statistics.prompts.variety < 0.6
    assert [item.code for item in statistics.languages.languages[:1]] == ["en"]
    assert statistics.languages.main_fraction is not None
    assert statistics.languages.main_fraction > 0.9
    assert statistics.coverage is not None
    assert (statistics.coverage.targets, statistics.coverage.covered) == (31, 30)
    assert {warning.code for warning in analysis.warnings} == {"ValidationLeakage"}
    learned = [text for runs in analysis.proof for is_learned, text in runs.runs if is_learned]
    assert all(answer in text for text, (_, answer) in zip(learned, airports("train"), strict=False))


@pytest.mark.model
@pytest.mark.parametrize("name", TEMPLATES)
def test_known_copies_are_found_and_no_others(name: str, tokenizers: RealTokenizers, tmp_path: Path) -> None:
    """Every row begins with the same long system prompt, in different places of the templates."""
    case = cases()[name]
    tokenizer: Any = fit(tokenizers, case)
    template = ChatTemplate(tokenizer, None, case.arguments)
    require_found(analyze_airports(tmp_path, template, Masker(template, 2048, stop_ids(tokenizer, case))))


@pytest.mark.model
def test_known_copies_are_found_with_the_model_of_the_quickstart(real_model: Path, tmp_path: Path) -> None:
    template = ChatTemplate(load_tokenizer(real_model))
    analysis = analyze_airports(tmp_path, template, Masker(template, 2048))
    require_found(analysis)
    capacity = analysis.statistics.capacity
    assert capacity is not None
    assert capacity.supervised_tokens == analysis.statistics.supervised.total
    assert 0 < capacity.ratio < 0.01


def test_equal_tables_give_equal_results(tmp_path: Path) -> None:
    rows = single_turns(80, 2)
    assert analyze_turns(tmp_path, rows) == analyze_turns(tmp_path, rows)


def test_a_single_row_can_be_analyzed(tmp_path: Path) -> None:
    analysis = analyze_turns(tmp_path, [[("hello there", "hi")]])
    assert analysis.statistics.prompts.variety is None
    assert [warning.code for warning in analysis.warnings] == ["FewRows"]
    assert analysis.summary().near_duplicates == 0


def test_temporary_files_are_removed_and_progress_reaches_its_total(tmp_path: Path) -> None:
    words = Words()
    rows = [[words.example(turns)] for turns in single_turns(30, 1)]
    training = write_table(tmp_path / "training.arrow", rows)
    validation = write_table(tmp_path / "validation.arrow", rows[:2])
    seen: list[tuple[int, int]] = []
    settings = AnalysisSettings((DatasetReport(rows=30, kept=30),), {START, END})
    analyze(training, validation, words.decode, settings, lambda done, total: seen.append((done, total)))
    assert {path.name for path in tmp_path.iterdir()} == {"training.arrow", "validation.arrow"}
    assert seen == sorted(seen)
    assert seen[-1] == (60, 60)
