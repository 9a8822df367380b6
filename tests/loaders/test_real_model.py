"""The real 135M model end to end: an honest run is accepted, and the artifact is the trained model."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from finetune_trainer.contract.result import VerificationResult
from finetune_trainer.contract.run_spec import RunSpec
from finetune_trainer.stages.merge.stage import merge
from finetune_trainer.stages.prepare.stage import prepare
from finetune_trainer.stages.train.stage import train
from finetune_trainer.telemetry.reporter import NullReporter
from finetune_trainer.workspace.layout import WorkspaceLayout

from tests.support.airports import (
    Scores,
    airports_run,
    held_out_examples,
    load_folder,
    load_on_original,
    load_trained,
    rounding_noise,
    score,
)

pytestmark = [pytest.mark.model, pytest.mark.full]

ONTO = ("TrainedWeights", "OriginalWeights")
ROWS = 24


@dataclass(frozen=True)
class Run:
    """One merge: the reference, the base under it, and the merged model, on held-out rows."""

    trained: Scores
    base: Scores
    merged: Scores
    verification: VerificationResult
    loss_noise: float
    """What stochastic rounding alone does to the loss; 0 where values round to the nearest."""


def _run_spec(workspace: Path, learning_rate: float, onto: str) -> RunSpec:
    return airports_run(
        workspace, workspace.parent / onto, {"learningRate": learning_rate}, output={"mergeOnto": onto}
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a prepared workspace that also keeps the original weights."""
    root = tmp_path_factory.mktemp("prepared") / "workspace"
    prepare(_run_spec(root, 1e-4, "OriginalWeights"), NullReporter())
    return root


@pytest.fixture(scope="module", params=[2e-4, 2e-5], ids=["2e-4", "2e-5"])
def runs(
    request: pytest.FixtureRequest, prepared: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Run]:
    """Train eight steps, and merge onto both kinds of weights."""
    workspace = tmp_path_factory.mktemp("trained") / "workspace"
    shutil.copytree(prepared, workspace)
    layout = WorkspaceLayout(workspace)
    train(_run_spec(workspace, request.param, "OriginalWeights"), NullReporter())
    examples = held_out_examples(layout, ROWS)
    found = {}
    for onto in ONTO:
        verification = merge(_run_spec(workspace, request.param, onto), NullReporter()).verification
        assert verification is not None
        reference = load_trained(layout) if onto == "TrainedWeights" else load_on_original(layout)
        trained = score(reference, examples)
        with reference.disable_adapter():
            base = score(reference, examples)
        merged = score(load_folder(workspace.parent / onto / "merged"), examples)
        stochastic = onto == "OriginalWeights"
        noise = rounding_noise(layout, trained, examples) if stochastic else 0.0
        found[onto] = Run(trained, base, merged, verification, noise)
    return found


@pytest.mark.parametrize("onto", ONTO)
def test_an_honest_run_keeps_its_function_and_its_gain(runs: dict[str, Run], onto: str) -> None:
    """The noise of the divergence is what MERGE measured. That of the loss is measured here, by other seeds."""
    run = runs[onto]
    noise = run.verification.noise_divergence
    assert noise is not None
    divergence, effect = run.trained.divergence_to(run.merged), run.trained.divergence_to(run.base)
    gain, kept = run.base.loss - run.trained.loss, run.base.loss - run.merged.loss
    print(
        f"{onto}: KL {divergence:.3g} of {effect:.3g}, noise {noise:.3g}, losses {run.base.loss:.4f}, {run.trained.loss:.4f}, "
        f"{run.merged.loss:.4f}, noise {run.loss_noise:.4f}, survives {run.verification.surviving_update}, "
        f"slope {run.verification.slope}"
    )
    assert divergence <= 0.01 * effect + noise
    assert gain > 10 * max(noise, run.loss_noise)
    assert kept >= 0.98 * gain - 2 * run.loss_noise
    assert run.verification.verdict == "Proven"
    assert (run.verification.surviving_update or 0.0) >= 0.98
