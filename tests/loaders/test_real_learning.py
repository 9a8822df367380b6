"""The real 135M model learns honest answers, and no others: the verdict tells them apart."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.contract.run_spec import RunSpec
from finetune_trainer.contract.train_result import EvaluationResult
from finetune_trainer.stages.prepare.stage import prepare
from finetune_trainer.stages.train.stage import train
from finetune_trainer.telemetry.reporter import NullReporter

from tests.support.airports import airports_run
from tests.support.e2e import quickstart

pytestmark = [pytest.mark.model, pytest.mark.full]

_DATASETS = quickstart.VOLUME / "datasets"
_ROWS = 48
_HELD_OUT = 32
_STEPS = 12


def _rows(split: str, count: int) -> list[dict[str, Any]]:
    """Return rows that ask for the sentence in them: a form that the base knows already.

    A form that it must learn would improve its loss with any answers.
    """
    lines = (_DATASETS / f"airports.{split}.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    return [_repeated(json.loads(line)["messages"][1]["content"]) for line in lines]


def _repeated(sentence: str) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "system", "content": "Repeat the sentence."},
            {"role": "user", "content": sentence},
            {"role": "assistant", "content": sentence},
        ]
    }


def _shuffled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give each prompt the answer of another one."""
    order = list(range(len(rows)))
    random.Random(3).shuffle(order)  # noqa: S311 -- test data
    others = {order[place]: order[place - 1] for place in range(len(order))}
    return [
        {"messages": [*row["messages"][:-1], rows[others[place]]["messages"][-1]]}
        for place, row in enumerate(rows)
    ]


def _write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def _trained(root: Path, rows: list[dict[str, Any]]) -> EvaluationResult:
    root.mkdir()
    training = {"maximumSteps": _STEPS, "learningRate": 2e-4, "effectiveBatchSize": 8, "microBatchSize": 8}
    run = airports_run(root / "workspace", root / "output", training)
    document = json.loads(run.model_dump_json(by_alias=True, exclude_unset=True))
    document["dataset"]["source"]["path"] = _write(root / "rows.jsonl", rows)
    held_out = _write(root / "held-out.jsonl", _rows("validation", _HELD_OUT))
    document["dataset"]["validation"]["source"]["path"] = held_out
    document["evaluation"]["maximumRows"] = _HELD_OUT
    run = RunSpec.model_validate_json(json.dumps(document))
    prepare(run, NullReporter())
    return train(run, NullReporter()).evaluation


def test_honest_answers_improve_the_real_model_and_shuffled_ones_do_not(tmp_path: Path) -> None:
    """Settings, prompts and the set of answers are equal; only the pairs of prompt and answer differ."""
    rows = _rows("train", _ROWS)
    shuffled = _trained(tmp_path / "shuffled", _shuffled(rows))
    assert shuffled.rows == _HELD_OUT
    assert shuffled.verdict in {"NoChange", "Worse"}, shuffled
    honest = _trained(tmp_path / "honest", rows)
    # The longest row of the training decides the batches of the measurement, and those the order of sums.
    assert honest.base_loss == pytest.approx(shuffled.base_loss, rel=1e-5)
    assert (honest.rows, honest.verdict) == (_HELD_OUT, "Improved"), honest
    assert honest.interval[1] < 0
