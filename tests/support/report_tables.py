"""Tables of a word-level tokenizer with a ChatML-like template, for the tests of the dataset report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from finetune_trainer.contract.run_spec import Thresholds
from finetune_trainer.data.dataset.counts import DatasetReport
from finetune_trainer.data.dataset.tables import TableWriter
from finetune_trainer.data.masking.example import IGNORED, Example
from finetune_trainer.report.analysis import Analysis, AnalysisSettings, analyze
from finetune_trainer.report.prompts import Frame

if TYPE_CHECKING:
    from pathlib import Path

START, END = 0, 1
Turns = Sequence[tuple[str, str]]


@dataclass
class Words:
    """A tokenizer with one token per word. `ids` grows with each new word."""

    ids: dict[str, int] = field(default_factory=lambda: {"<start>": START, "<end>": END})

    def encode(self, text: str) -> list[int]:
        return [self.ids.setdefault(word, len(self.ids)) for word in text.split(" ") if word]

    def decode(self, ids: Sequence[int]) -> str:
        texts = list(self.ids)
        return " ".join(texts[token] for token in ids)

    def example(self, turns: Turns, system: str | None = None) -> Example:
        ids: list[int] = []
        labels: list[int] = []
        if system is not None:
            ids += [START, *self.encode(f"system: {system}"), END]
        for prompt, answer in turns:
            ids += [START, *self.encode(f"user: {prompt}"), END, START, *self.encode("assistant:")]
            labels += [IGNORED] * (len(ids) - len(labels))
            learned = [*self.encode(answer), END]
            ids += learned
            labels += learned
        return Example(ids, labels)


FRAME = Frame("user:", "")


def write_table(path: Path, rows: Sequence[Sequence[Example]]) -> Path:
    """Write rows with one or more examples each, numbered from 1."""
    table = TableWriter(path)
    for number, examples in enumerate(rows, start=1):
        for example in examples:
            table.add(example.of_row(number))
    table.finish()
    return path


def analyze_turns(
    folder: Path,
    training: Sequence[Turns],
    validation: Sequence[Turns] = ((("how do you do", "well thank you"),),),
    system: str | None = None,
    **settings: Any,
) -> Analysis:
    """Analyze conversations with one example each."""
    words = Words()
    paths = [
        write_table(folder / f"{name}.arrow", [[words.example(turns, system)] for turns in rows])
        for name, rows in (("training", training), ("validation", validation))
    ]
    members: dict[str, Any] = {
        "reports": (DatasetReport(rows=len(training), kept=len(training)),),
        "special_ids": {START, END},
        "frame": FRAME,
        "thresholds": Thresholds(),
        **settings,
    }
    return analyze(paths[0], paths[1], words.decode, AnalysisSettings(**members))


def sentences(count: int, seed: int, size: int = 30, prefix: str = "word") -> list[str]:
    """Return `count` random texts with almost no words in common."""
    numbers = np.random.default_rng(seed).integers(0, 50_000, (count, size))
    return [" ".join(f"{prefix}{number}" for number in line) for line in numbers]


def single_turns(count: int, seed: int) -> list[Turns]:
    """Return `count` random conversations of one turn."""
    return [[pair] for pair in zip(sentences(count, seed), sentences(count, seed + 1), strict=True)]


def with_a_changed_word(text: str, place: int) -> str:
    """Return `text` with the word at position `place` replaced."""
    words = text.split(" ")
    words[place] = "changed"
    return " ".join(words)
