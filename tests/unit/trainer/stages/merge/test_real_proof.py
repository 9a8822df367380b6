"""The proof on SmolLM2-135M with the quickstart's data: honest merges are accepted, and faults are found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from finetune_trainer.contract.run_spec import RunSpec
from finetune_trainer.stages.merge.verdict import noise, verdict
from finetune_trainer.stages.merge.weight_proof import total
from finetune_trainer.stages.prepare.stage import prepare
from finetune_trainer.telemetry.reporter import NullReporter

from tests.support.merging import Tuned, scaled, swapped, tune, without
from tests.support.repository import ROOT
from tests.support.workspaces import run_spec

if TYPE_CHECKING:
    from pathlib import Path

    from finetune_trainer.stages.merge.verification import Verification

pytestmark = [pytest.mark.model, pytest.mark.full]
_LORA = {"rank": 16, "alpha": 32, "dropout": 0, "targetModules": "AllLinear", "variant": "Standard"}


@pytest.fixture(scope="module")
def prepared(real_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the workspace that PREPARE makes of the model and the airports."""
    root = tmp_path_factory.mktemp("real")
    document: dict[str, Any] = run_spec(root / "prepared", root / "unused").model_dump(
        mode="json", by_alias=True
    )
    rows = ROOT / ".finetune" / "volumes" / "quickstart" / "datasets" / "airports.train.jsonl"
    document["model"] = {
        "source": {"kind": "Directory", "path": str(real_model)},
        "chatTemplateArguments": {},
    }
    document["dataset"] |= {
        "source": {"kind": "File", "path": str(rows)},
        "validation": {"fraction": 0.15},
    }
    prepare(RunSpec.model_validate(document), NullReporter())
    return root / "prepared"


def tuned(prepared: Path, folder: Path, real_model: Path, **training: Any) -> Tuned:
    lora = {**_LORA, "variant": training.pop("variant", "Standard")}
    return tune(prepared, folder, real_model, microBatchSize=4, effectiveBatchSize=4, lora=lora, **training)


def report(name: str, found: Verification) -> None:
    measures = found.measures
    assert measures is not None
    mean = measures.mean
    print(
        f"{name}: KL {mean.divergence:.3g}, effect {mean.effect:.3g}, noise {noise(mean):.3g}, "
        f"slope {measures.slope.value:.4f} ± {measures.slope.noise:.4f}, deviation {measures.deviation:.2g}, "
        f"loss {found.trained_loss:.4f} trained, {found.merged_loss:.4f} merged, "
        f"survives {total(found.weights).projection:.4f}, {verdict(measures)}, {found.fault()}"
    )


@pytest.mark.parametrize(
    ("steps", "rate", "variant"),
    [
        (2, 2e-5, "Standard"),
        (8, 2e-5, "DoRA"),
        (8, 2e-4, "Standard"),
        (20, 1e-3, "RankStabilized"),
        (40, 2e-4, "DoRA"),
    ],
)
def test_honest_merges_of_the_real_model_are_accepted(
    prepared: Path, real_model: Path, tmp_path: Path, steps: int, rate: float, variant: str
) -> None:
    honest = tuned(
        prepared,
        tmp_path / "workspace",
        real_model,
        maximumSteps=steps,
        learningRate=rate,
        variant=variant,
        seed=steps,
    )
    for onto_original in (False, True):
        merged = honest.merge(tmp_path / f"merged-{onto_original}", onto_original=onto_original)
        found = honest.verify(merged, onto_original=onto_original)
        report(f"{steps} steps at {rate}, {variant}, {'original' if onto_original else 'trained'}", found)
        assert found.fault() is None
        measures = found.measures
        assert measures is not None
        mean = measures.mean
        assert mean.divergence <= 0.01 * mean.effect + 2 * noise(mean)
        if mean.effect > 10 * noise(mean):
            assert verdict(measures) == "Proven"
            assert total(found.weights).projection == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("rate", [5e-5, 1e-3])
def test_faults_of_the_real_model_are_found(
    prepared: Path, real_model: Path, tmp_path: Path, rate: float
) -> None:
    """The adapter has changed since the training, or the merge left out one matrix of 210."""
    honest = tuned(prepared, tmp_path / "workspace", real_model, maximumSteps=16, learningRate=rate)
    updates = honest.updates
    part = "layers.17.self_attn.v_proj"
    wrong = {
        f"factor {factor}": scaled(updates, factor) for factor in (0.0, 0.5, 0.9, 1.1, 2.0, 5.0, 20.0, -1.0)
    }
    wrong |= {"exchanged": swapped(updates), "without layer 17": without(updates, "layers.17.")}
    for name, update in wrong.items():
        found = honest.verify(honest.merge(tmp_path / name, update), update)
        report(f"{name} at {rate}", found)
        assert found.fault() is not None, name
    left_out = honest.verify(honest.merge(tmp_path / "left out", without(updates, part)))
    assert part in (left_out.fault() or "")
