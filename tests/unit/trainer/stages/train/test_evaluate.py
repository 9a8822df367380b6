"""TRAIN's evaluation: what it keeps in the workspace, what ends a run, and what the verdict says of honest data."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.contract.run_spec import RunSpec
from finetune_trainer.contract.train_result import EvaluationResult
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.evaluation.compare import RowLoss
from finetune_trainer.evaluation.scoring import row_losses
from finetune_trainer.stages.train import evaluate
from finetune_trainer.stages.train.dataset import open_table
from finetune_trainer.stages.train.evaluate import answer_stops, base_losses
from finetune_trainer.stages.train.stage import train
from finetune_trainer.telemetry.reporter import NullReporter
from finetune_trainer.workspace.layout import WorkspaceLayout, read_marker, write_marker
from transformers import AutoTokenizer

from tests.support import classes
from tests.support.workspaces import SPEC_HASH, run_spec


def _run(workspace: Path, evaluation: dict[str, Any], **training: Any) -> RunSpec:
    document = run_spec(workspace, workspace.parent / "output", **training).model_dump(
        mode="json", by_alias=True
    )
    document["evaluation"] |= evaluation
    return RunSpec.model_validate(document)


@pytest.mark.slow
def test_the_run_has_metrics_and_a_report_with_answers(workspace: Path) -> None:
    run = _run(workspace, {"generatedRows": 5, "samplePrompts": ["say 3"]}, maximumSteps=2)
    found = train(run, NullReporter()).evaluation
    assert found.metrics is not None
    assert [(metric.name, metric.rows) for metric in found.metrics] == [("ExactMatch", 5)]
    report = json.loads((WorkspaceLayout(workspace).report / "evaluation.json").read_text())
    assert report["evaluation"] == found.document()
    assert [sample["prompt"] for sample in report["samples"]] == ["say 3"]
    assert len(report["rows"]) == 5


@pytest.mark.slow
def test_a_report_that_cannot_be_written_does_not_end_the_run(
    workspace: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layout = WorkspaceLayout(workspace)
    (layout.report / "evaluation.json").mkdir()
    train(_run(workspace, {"generatedRows": 2}, maximumSteps=1), NullReporter())
    assert "cannot keep the report" in caplog.text


def test_base_losses_of_an_earlier_trainer_are_used_without_accuracy(workspace: Path) -> None:
    layout = WorkspaceLayout(workspace)
    run = _run(workspace, {"generatedRows": 0}, maximumSteps=1)
    losses = [{"row": row, "nats": 30.0 + row, "tokens": 5} for row in (1, 2)]
    write_marker(layout, "base-evaluation", SPEC_HASH, {"losses": losses})
    found = base_losses(run, layout, None, [], (100,), NullReporter())
    assert found == [RowLoss(1, 31.0, 5), RowLoss(2, 32.0, 5)]


@pytest.mark.slow
def test_an_earlier_trainer_can_read_the_base_losses(workspace: Path) -> None:
    layout = WorkspaceLayout(workspace)
    train(_run(workspace, {"generatedRows": 0}, maximumSteps=1), NullReporter())
    kept = read_marker(layout, "base-evaluation", SPEC_HASH)
    assert kept is not None
    assert {frozenset(loss) for loss in kept["losses"]} == {frozenset({"row", "nats", "tokens"})}
    again = base_losses(run_spec(workspace, workspace), layout, None, [], (100,), NullReporter())
    assert [loss.correct for loss in again] == kept["correct"]


@pytest.mark.slow
@pytest.mark.parametrize("nats", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_with_its_row(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, nats: float
) -> None:
    """Training has its own check of each step. Here the tuned model is broken after its last step."""
    calls = []

    def measured(*arguments: Any) -> list[RowLoss]:
        calls.append(1)
        found = row_losses(*arguments)
        return found if len(calls) == 1 else [*found[:-1], RowLoss(found[-1].row, nats, 5, 0)]

    monkeypatch.setattr(evaluate, "row_losses", measured)
    with pytest.raises(StageError) as caught:
        train(_run(workspace, {"generatedRows": 0}, maximumSteps=1), NullReporter())
    assert caught.value.reason is Reason.NON_FINITE_LOSS
    assert "row 8 with the tuned model" in caught.value.message


def test_answers_stop_at_learned_and_served_ends(workspace: Path) -> None:
    layout = WorkspaceLayout(workspace)
    examples = open_table(layout.validation_table).first(8)
    own = AutoTokenizer.from_pretrained(layout.base).eos_token_id
    prepared = read_marker(layout, "prepare", SPEC_HASH)
    assert prepared is not None
    prepared["dataset"]["endTokens"] = [{"id": 7, "text": "x"}, {"id": own, "text": "<|im_end|>"}]
    write_marker(layout, "prepare", SPEC_HASH, prepared)
    assert answer_stops(layout, SPEC_HASH, examples) == (7, own)
    del prepared["dataset"]["endTokens"]
    write_marker(layout, "prepare", SPEC_HASH, prepared)
    assert answer_stops(layout, SPEC_HASH, examples) == (own,)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny base that knows the form of the answers and their shares, but not which prompt gets which."""
    folder = tmp_path_factory.mktemp("classes") / "base"
    classes.write_base(folder)
    return folder


def _trained(base: Path, folder: Path, held_out: int = 32, **how: bool) -> EvaluationResult:
    layout = classes.prepare(folder, base, held_out=held_out, **how)
    run = _run(
        layout.root,
        {"maximumRows": 64, "minimumRows": 20, "generatedRows": 32},
        maximumSteps=40,
        effectiveBatchSize=16,
        microBatchSize=16,
        learningRate=0.01,
    )
    return train(run, NullReporter()).evaluation


@pytest.mark.slow
def test_honest_answers_improve_and_shuffled_answers_do_not(base: Path, tmp_path: Path) -> None:
    """Settings, prompts and the set of answers are equal; only the pairs of prompt and answer differ."""
    honest = _trained(base, tmp_path / "honest")
    assert honest.verdict == "Improved"
    assert honest.interval[1] < 0
    assert honest.metrics is not None
    exact = honest.metrics[0]
    assert exact.interval is not None
    assert exact.interval[0] > 0
    assert (exact.tuned or 0) > 0.8
    assert (exact.base or 0) < 0.6
    shuffled = _trained(base, tmp_path / "shuffled", shuffled=True)
    assert shuffled.verdict in {"NoChange", "Worse"}
    assert shuffled.metrics is not None
    assert shuffled.metrics[0].interval is not None
    assert shuffled.metrics[0].interval[0] < 0


@pytest.mark.slow
def test_two_validation_rows_are_inconclusive_however_good_the_training_is(
    base: Path, tmp_path: Path
) -> None:
    found = _trained(base, tmp_path / "two", held_out=2)
    assert (found.rows, found.verdict) == (2, "Inconclusive")
    assert found.difference < -0.1
    assert found.needed_rows is not None
    assert found.needed_rows >= 20
