"""The proof on tiny trained models: it accepts honest merges, and finds every fault that it must find."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.evaluation.recording import read_record
from finetune_trainer.model import load
from finetune_trainer.model.tokenization import tokenization_digest
from finetune_trainer.stages.merge.streamed_model import PlainWeights, StreamedModel
from finetune_trainer.stages.merge.tensor_files import TensorFiles
from finetune_trainer.stages.merge.verdict import noise, slope_tolerance, verdict
from finetune_trainer.stages.merge.verification import (
    Verification,
    require_agreement,
    require_tokenization,
    verify,
)
from finetune_trainer.stages.merge.weight_proof import total
from finetune_trainer.workspace.layout import WorkspaceLayout
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.support import workspaces
from tests.support.merging import Tuned, rewrite, scaled, swapped, tune, without

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_LORA = {"rank": 4, "alpha": 8, "dropout": 0, "targetModules": "AllLinear", "variant": "Standard"}
_VARIANTS = ("Standard", "RankStabilized", "DoRA")
# Steps and learning rates of honest runs; family, variant, seed and lengths change along.
_HONEST = [
    (2, 2e-5),
    (2, 1e-3),
    (3, 2e-4),
    (5, 5e-5),
    (8, 2e-5),
    (8, 2e-4),
    (8, 1e-3),
    (12, 1e-4),
    (13, 5e-4),
    (16, 2e-4),
    (17, 1e-3),
    (20, 3e-5),
    (20, 3e-4),
    (24, 1e-3),
    (28, 2e-4),
    (30, 5e-4),
    (40, 1e-4),
    (45, 1e-3),
    (50, 3e-4),
    (60, 2e-5),
    (60, 1e-3),
]
_FACTORS = (0.0, 0.5, 0.9, 1.1, 2.0, 5.0, 20.0, -1.0)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of prepared workspaces and bases of each family, and of one that differs in its weights alone."""
    root = tmp_path_factory.mktemp("prepared")
    for family in workspaces.CONFIGS:
        workspaces.write_base(root / f"{family}-base", family, shard="60KB")
        workspaces.prepare(root / family, root / f"{family}-base", held_out=12)
    shutil.copytree(root / "llama-base", root / "other-base")
    rewrite(root / "other-base", lambda _name, tensor: tensor * 1.01)
    workspaces.prepare(root / "other", root / "other-base", held_out=12)
    return root


@pytest.fixture(scope="session")
def tuned(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """Return an adapter with a moderate effect."""
    root = tmp_path_factory.mktemp("tuned") / "workspace"
    return tune(prepared / "llama", root, prepared / "llama-base", maximumSteps=20, learningRate=1e-3)


def numbers(verification: Verification) -> dict[str, Any]:
    found = verification.measures
    assert found is not None
    mean = found.mean
    return {
        "effect": mean.effect,
        "divergence": mean.divergence,
        "noise": noise(mean),
        "slope": found.slope.value,
        "tolerance": slope_tolerance(found),
        "deviation": found.deviation / max(found.change, 1e-12),
        "survives": total(verification.weights).projection,
        "verdict": verdict(found),
        "fault": verification.fault(),
    }


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "rate"), _HONEST)
def test_honest_merges_are_accepted(prepared: Path, tmp_path: Path, steps: int, rate: float) -> None:
    case = _HONEST.index((steps, rate))
    family = list(workspaces.CONFIGS)[case % 3]
    honest = tune(
        prepared / family,
        tmp_path / "workspace",
        prepared / f"{family}-base",
        maximumSteps=steps,
        learningRate=rate,
        seed=case,
        microBatchSize=1 + case % 4,
        effectiveBatchSize=1 + case % 4,
        lora={**_LORA, "variant": _VARIANTS[case // 3 % 3], "rank": 2 + case % 7},
    )
    for onto_original in (False, True):
        folder = honest.merge(tmp_path / f"merged-{onto_original}", onto_original=onto_original)
        found = numbers(honest.verify(folder, onto_original=onto_original))
        print(family, steps, rate, "original" if onto_original else "trained", found)
        require_honest(found)


def require_honest(found: dict[str, Any]) -> None:
    assert found["fault"] is None
    # What the product promises of an honest merge, which is less than what the gate allows.
    assert found["divergence"] <= 0.01 * found["effect"] + 2 * found["noise"]
    if found["effect"] > 10 * found["noise"]:
        assert found["verdict"] == "Proven"
        assert found["survives"] == pytest.approx(1, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "dropout"), [("Standard", 0), ("DoRA", 0.1)])
def test_an_adapter_in_float32_that_multiplied_in_bf16_merges_honestly(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str, dropout: float
) -> None:
    """As on a GPU. The record measures the rounding of the products, and that of the factors with it.

    An adapter that an older trainer saved in bf16 is the one that was multiplied with, and merges as well.
    """
    monkeypatch.setattr(load, "compute_dtype", lambda _device: torch.bfloat16)
    honest = tune(
        prepared / "llama",
        tmp_path / "workspace",
        prepared / "llama-base",
        maximumSteps=20,
        learningRate=1e-3,
        lora={**_LORA, "variant": variant, "dropout": dropout},
    )
    assert read_record(honest.workspace.verification).arithmetic == "Measured"
    saved = load_file(honest.workspace.adapter / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    require_honest(numbers(honest.verify(honest.merge(tmp_path / "merged"))))
    rewrite(
        honest.workspace.adapter,
        lambda name, tensor: tensor if "magnitude" in name else tensor.bfloat16(),
    )
    require_honest(numbers(honest.verify(honest.merge(tmp_path / "merged-older"))))


@pytest.mark.parametrize("factor", _FACTORS)
def test_an_adapter_of_another_strength_is_found_by_predictions(
    tuned: Tuned, tmp_path: Path, factor: float
) -> None:
    """The adapter's file has changed since the training, so all weights agree with it."""
    wrong = scaled(tuned.updates, factor)
    found = tuned.verify(tuned.merge(tmp_path / "merged", wrong), wrong)
    assert all(proof.foreign == 0 for proof in found.weights)
    assert "must" in (found.fault() or "")


@pytest.mark.parametrize("factor", _FACTORS)
@pytest.mark.parametrize("rate", [1e-4, 1e-2])
def test_the_strength_is_found_for_weak_and_strong_adapters_too(
    prepared: Path, tmp_path: Path, factor: float, rate: float
) -> None:
    """A strong adapter predicts nearly the same with 0.9 of its strength: what it learned is certain either way."""
    other = _tuned_once(prepared, tmp_path, rate)
    wrong = scaled(other.updates, factor)
    found = other.verify(other.merge(tmp_path / "merged", wrong), wrong)
    assert numbers(found)["verdict"] == "Proven"
    assert found.fault() is not None


_KEPT: dict[float, Tuned] = {}


def _tuned_once(prepared: Path, folder: Path, rate: float) -> Tuned:
    if rate not in _KEPT:
        _KEPT[rate] = tune(
            prepared / "llama",
            folder / "workspace",
            prepared / "llama-base",
            maximumSteps=40,
            learningRate=rate,
        )
    return _KEPT[rate]


@pytest.mark.parametrize("factor", _FACTORS)
def test_a_merge_of_another_strength_is_found_by_the_weights(
    tuned: Tuned, tmp_path: Path, factor: float
) -> None:
    found = tuned.verify(tuned.merge(tmp_path / "merged", scaled(tuned.updates, factor)))
    assert "must be base plus update, rounded once" in (found.fault() or "")


def test_exchanged_matrices_are_found(tuned: Tuned, tmp_path: Path) -> None:
    """By predictions if MERGE reads them so, and by the weights if it only writes them so."""
    wrong = swapped(tuned.updates)
    merged = tuned.merge(tmp_path / "merged", wrong)
    read = tuned.verify(merged, wrong)
    assert all(proof.foreign == 0 for proof in read.weights)
    assert read.fault() is not None
    assert "rounded once" in (tuned.verify(merged).fault() or "")


@pytest.mark.parametrize("part", ["layers.1.", "layers.0.self_attn.k_proj"])
def test_a_layer_or_a_matrix_that_was_not_merged_is_named(tuned: Tuned, tmp_path: Path, part: str) -> None:
    merged = tuned.merge(tmp_path / "merged", without(tuned.updates, part))
    assert part in (tuned.verify(merged).fault() or "")


def test_a_layer_that_the_adapter_lost_is_found_by_predictions(tuned: Tuned, tmp_path: Path) -> None:
    wrong = without(tuned.updates, "layers.1.")
    assert tuned.verify(tuned.merge(tmp_path / "merged", wrong), wrong).fault() is not None


def test_a_file_of_another_base_is_found(prepared: Path, tuned: Tuned, tmp_path: Path) -> None:
    """In the artifact by the weights, and in the 4-bit checkpoint by predictions."""
    merged = tuned.merge(tmp_path / "merged")
    foreign = prepared / "other" / "model"
    names = [path.name for path in sorted(foreign.glob("*.safetensors"))]
    for name in (names[0], names[-1]):
        broken = Tuned(WorkspaceLayout(tmp_path / name), tuned.original)
        _link(tuned.workspace.root, broken.workspace.root)
        path = broken.workspace.quantized_model / name
        path.unlink()
        path.write_bytes((foreign / name).read_bytes())
        written = broken.merge(tmp_path / f"{name}-merged")
        assert broken.verify(written).fault() is not None
        (merged / name).write_bytes((written / name).read_bytes())
        assert "must be" in (tuned.verify(merged).fault() or "")


def _link(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        if path.is_file():
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.hardlink_to(path)


def test_rounding_twice_is_found(tuned: Tuned, tmp_path: Path) -> None:
    """The base is rounded to bf16 before the update is added, as a merge did once."""
    merged = tuned.merge(tmp_path / "merged")
    with tuned.reference() as reference:

        def double(name: str, tensor: torch.Tensor) -> torch.Tensor:
            module = name.removesuffix(".weight")
            if module not in reference.modules:
                return tensor
            (rows,) = reference.blocks(module)
            return (rows.base.bfloat16().float() + (rows.exact - rows.base)).bfloat16()

        rewrite(merged, double)
    assert "rounded once" in (tuned.verify(merged).fault() or "")


def test_one_changed_value_of_a_tensor_that_is_not_merged_is_found(tuned: Tuned, tmp_path: Path) -> None:
    merged = tuned.merge(tmp_path / "merged")

    def bump(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name == "model.embed_tokens.weight":
            tensor[-1, -1] += 1
        return tensor

    rewrite(merged, bump)
    assert "model.embed_tokens.weight must be the base as trained, found other values in 1 of" in (
        tuned.verify(merged).fault() or ""
    )


@pytest.mark.parametrize("with_head", [True, False])
def test_a_tied_head_that_came_untied_is_found(tuned: Tuned, tmp_path: Path, with_head: bool) -> None:  # noqa: FBT001 -- a table of cases
    """With a head of its own, or with none: a loader would then make a random one."""
    merged = tuned.merge(tmp_path / "merged")
    config = json.loads((merged / "config.json").read_text())
    (merged / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    if with_head:
        head = load_file(next(merged.glob("*00001-of*")))
        other = {"lm_head.weight": torch.randn(320, 64).bfloat16() / 8}
        save_file({**head, **other}, next(merged.glob("*00001-of*")))
    with pytest.raises(StageError, match=r"lm_head\.weight") as caught:
        require_agreement(tuned.verify(merged))
    assert caught.value.reason is Reason.ARTIFACT_VERIFICATION_FAILED


def test_another_template_or_tokenizer_is_found(tuned: Tuned) -> None:
    digest = tokenization_digest(tuned.workspace.base)
    assert read_record(tuned.workspace.verification).tokenization == digest
    require_tokenization(tuned.workspace.base, digest)
    with pytest.raises(StageError, match="must be those of the training") as caught:
        require_tokenization(tuned.workspace.base, "sha256:other")
    assert caught.value.reason is Reason.ARTIFACT_VERIFICATION_FAILED


def test_every_weight_is_read_once_for_all_rows_and_variants(
    tuned: Tuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the tied embedding the used rows are looked up, and then it is read as the head; norms are read twice."""
    merged = tuned.merge(tmp_path / "merged")
    opened: list[TensorFiles] = []

    class Counted(TensorFiles):
        def __init__(self, folder: Path) -> None:
            super().__init__(folder)
            opened.append(self)

    monkeypatch.setattr("finetune_trainer.stages.merge.verification.TensorFiles", Counted)
    rows = read_record(tuned.workspace.verification).rows
    assert len(rows) > 4
    tuned.verify(merged)
    (files,) = opened
    for name in files.names:
        if name.removesuffix(".weight") in tuned.layout.quantized:
            assert files.bytes_read[name] == files.bytes(name)
    assert sum(files.bytes_read.values()) <= 2 * sum(files.bytes(name) for name in files.names)


def test_the_numbers_are_those_of_the_loaded_model(tuned: Tuned, tmp_path: Path) -> None:
    merged = tuned.merge(tmp_path / "merged")
    found = tuned.verify(merged)
    model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
    record = read_record(tuned.workspace.verification)
    nats = 0.0
    for row in record.rows:
        with torch.no_grad():
            logits = model(torch.tensor([row.example.input_ids])).logits[0]
        scores = torch.log_softmax(logits.double(), -1)
        nats -= sum(float(scores[place - 1, row.example.labels[place]]) for place in row.example.supervised)
    assert found.merged_loss == pytest.approx(nats / found.tokens, abs=1e-6)
    assert found.rows == len(record.rows)
    assert len(found.best) == record.rows[0].loss.tokens
    with TensorFiles(merged) as files:
        (alone,) = StreamedModel(merged, files).score([record.rows[0].example], [()], PlainWeights(files))
    assert tuple(alone.best.tolist()) == found.best


def test_the_record_of_an_older_trainer_is_judged_by_absolute_bounds(tuned: Tuned, tmp_path: Path) -> None:
    """The weights are compared all the same."""
    path = tuned.workspace.verification
    older = ("input_ids", "labels", "positions", "log_probabilities")
    with safe_open(path, framework="pt") as file:
        rows = file.metadata()["rows"]
        kept = {
            f"{row}.{member}": file.get_tensor(f"{row}.{member}")
            for row in range(len(json.loads(rows)))
            for member in older
        }
    save_file(kept, tmp_path / "older", metadata={"rows": rows})
    record = read_record(tmp_path / "older")

    def judge(merged: Path, updates: Any) -> Verification:
        with tuned.reference(updates) as reference:
            return verify(merged, record, reference, lambda _done, _total: None)

    merged = tuned.merge(tmp_path / "merged")
    found = judge(merged, tuned.updates)
    assert found.measures is None
    require_agreement(found)
    strong = scaled(tuned.updates, 2000)
    merged = tuned.merge(tmp_path / "strong", strong)
    assert "must be at most 0.02 nats" in (judge(merged, strong).fault() or "")
    assert "rounded once" in (judge(merged, tuned.updates).fault() or "")


@pytest.mark.parametrize("change", [lambda tensor: tensor * torch.nan, lambda tensor: tensor * torch.inf])
def test_values_that_are_not_finite_are_found(
    tuned: Tuned, tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    merged = tuned.merge(tmp_path / "merged")
    rewrite(merged, lambda name, tensor: change(tensor) if "q_proj" in name else tensor)
    with pytest.raises(StageError, match="nothing was published; run the job again") as caught:
        require_agreement(tuned.verify(merged))
    assert caught.value.reason is Reason.ARTIFACT_VERIFICATION_FAILED
