"""TRAIN on a tiny real model: results, resume, interruption and errors."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.evaluation.recording import read_record
from finetune_trainer.model.fused.device import DeviceKernels
from finetune_trainer.model.load import cast_model, load_quantized
from finetune_trainer.model.packed_attention import using_attention
from finetune_trainer.model.tokenization import tokenization_digest
from finetune_trainer.stages.train import stage
from finetune_trainer.stages.train.batching import choose
from finetune_trainer.stages.train.checkpoints import newest_checkpoint
from finetune_trainer.stages.train.compile_cache import VARIABLE
from finetune_trainer.stages.train.dataset import open_table, training_dataset
from finetune_trainer.stages.train.loop import AdapterTrainer
from finetune_trainer.stages.train.passes import StepCollator
from finetune_trainer.stages.train.progress_callback import ProgressCallback
from finetune_trainer.stages.train.stage import _build_trainer, _load, train
from finetune_trainer.stages.train.stop_request import StopRequest
from finetune_trainer.telemetry.reporter import NullReporter
from finetune_trainer.workspace.layout import WorkspaceLayout, read_marker, write_json_atomically
from jsonschema import Draft202012Validator
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tests.support.kernel_sets import EqualKernels, on_a_gpu
from tests.support.repository import ROOT
from tests.support.workspaces import SPEC_HASH, run_spec

_VARIANTS = ["Standard", "RankStabilized", "DoRA"]


def _lora(**more: Any) -> dict[str, Any]:
    standard = {"rank": 4, "alpha": 8, "dropout": 0, "targetModules": "AllLinear", "variant": "Standard"}
    return {**standard, **more}


class _Recorder(NullReporter):
    """Records (activity, step, loss), and sends SIGTERM to this process at a training step."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.seen: list[tuple[str, int, float | None]] = []
        self._stop_at = stop_at

    def update(
        self, activity: str, step: int, total: int | None, *, loss: float | None = None, **more: Any
    ) -> None:
        super().update(activity, step, total, loss=loss, **more)
        self.seen.append((activity, step, loss))
        if activity == "Training" and loss is not None and step == self._stop_at:
            os.kill(os.getpid(), signal.SIGTERM)


def _adapter(workspace: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(WorkspaceLayout(workspace).adapter / "adapter_model.safetensors"))


def test_dequantized_weights_end_with_the_same_adapter_and_input_of_merge(
    workspace: Path, tmp_path: Path
) -> None:
    """DoRA reads the weights for its norms, too."""
    other = tmp_path / "other"
    shutil.copytree(workspace, other)
    settings: dict[str, Any] = {"maximumSteps": 4, "lora": _lora(variant="DoRA")}
    packed = train(run_spec(workspace, tmp_path / "output", **settings), _Recorder())
    plain = train(run_spec(other, tmp_path / "output", weights="Dequantized", **settings), _Recorder())
    assert plain.rung is not None
    assert packed.rung is not None
    assert plain.rung.document() == {**packed.rung.document(), "weights": "Dequantized"}
    assert plain.batching == packed.batching
    assert plain.evaluation.base_loss == pytest.approx(packed.evaluation.base_loss, abs=1e-6)
    assert plain.evaluation.tuned_loss == pytest.approx(packed.evaluation.tuned_loss, abs=1e-5)
    first, second = WorkspaceLayout(workspace), WorkspaceLayout(other)
    expected, found = _adapter(workspace), _adapter(other)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=2e-5), name
    configuration = "adapter_config.json"
    assert (first.adapter / configuration).read_bytes() == (second.adapter / configuration).read_bytes()
    assert read_marker(first, "trained-base", SPEC_HASH) == read_marker(second, "trained-base", SPEC_HASH)
    records = read_record(first.verification), read_record(second.verification)
    assert records[0].arithmetic == records[1].arithmetic == "Float32"
    for one, two in zip(records[0].rows, records[1].rows, strict=True):
        assert torch.allclose(one.log_probabilities, two.log_probabilities, atol=1e-4)


def test_in_16_bits_dequantized_weights_leave_the_same_record_for_merge(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU. The record has numbers of float32 arithmetic, in which a packed weight is not rounded to 16 bits."""

    def load_in_16_bits(path: Path, device: str) -> Any:
        model = load_quantized(path, device)
        cast_model(model, torch.bfloat16)
        return model

    monkeypatch.setattr(stage, "load_quantized", load_in_16_bits)
    other = tmp_path / "other"
    shutil.copytree(workspace, other)
    records = []
    for root, weights in ((workspace, "Quantized"), (other, "Dequantized")):
        train(run_spec(root, tmp_path / "output", maximumSteps=4, weights=weights), _Recorder())
        records.append(read_record(WorkspaceLayout(root).verification))
    assert records[0].arithmetic == records[1].arithmetic == "Measured"
    for one, two in zip(records[0].rows, records[1].rows, strict=True):
        assert one.effect is not None
        assert two.effect is not None
        for name, tolerance in (("trained_float32", 1e-4), ("base_float32", 1e-6)):
            numbers, others = getattr(one.effect, name), getattr(two.effect, name)
            assert torch.allclose(numbers, others, atol=tolerance), name


def test_training_improves_the_held_out_loss_and_writes_the_input_of_merge(
    workspace: Path, tmp_path: Path
) -> None:
    """The result follows the contract, adapter, record and marker exist, and progress shows every step."""
    run = run_spec(workspace, tmp_path / "output", maximumSteps=40, learningRate=0.01)
    progress = _Recorder()
    result = train(run, progress).document()
    schema = json.loads((ROOT / "contract" / "result.schema.json").read_text())
    Draft202012Validator({**schema, **schema["$defs"]["train"]}).validate(result)
    evaluation = result["evaluation"]
    assert evaluation["verdict"] == "Improved"
    assert evaluation["tunedLoss"] < evaluation["baseLoss"]
    assert result["steps"] == 40
    activities = list(dict.fromkeys(activity for activity, _, _ in progress.seen))
    assert activities == ["LoadingModel", "ProbingMemory", "EvaluatingBase", "Training", "EvaluatingTuned"]
    steps = [step for activity, step, loss in progress.seen if activity == "Training" and loss is not None]
    assert steps == list(range(1, 41))
    layout = WorkspaceLayout(workspace)
    config = json.loads((layout.adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"
    record = read_record(layout.verification)
    rows = record.rows
    assert record.arithmetic == "Float32"
    assert record.tokenization == tokenization_digest(layout.base)
    nats = sum(row.loss.nats for row in rows) / sum(row.loss.tokens for row in rows)
    assert nats == pytest.approx(evaluation["tunedLoss"], rel=1e-4)
    without = -sum(float(row.effect.base.sum()) for row in rows if row.effect) / sum(
        row.loss.tokens for row in rows
    )
    assert without == pytest.approx(evaluation["baseLoss"], rel=1e-4)
    for row in rows:
        assert torch.allclose(row.log_probabilities.exp().sum(-1), torch.ones(len(row.positions)))
    assert read_marker(layout, "train", SPEC_HASH) == result
    assert not layout.checkpoints.exists()
    curve = json.loads((layout.report / "training.json").read_text())
    assert [point["step"] for point in curve["points"]] == list(range(1, 41))
    assert curve["points"][-1]["loss"] < curve["points"][0]["loss"]


def test_a_finished_stage_returns_the_same_result_without_training(workspace: Path, tmp_path: Path) -> None:
    run = run_spec(workspace, tmp_path / "output", maximumSteps=2)
    result = train(run, NullReporter())
    progress = _Recorder()
    assert train(run, progress) == result
    assert progress.seen == []


@pytest.mark.slow
def test_the_base_model_does_not_change(workspace: Path, tmp_path: Path) -> None:
    """The base evaluation is the same before and after training, so no quantized weight has changed."""
    run = run_spec(workspace, tmp_path / "output", maximumSteps=3)
    first = train(run, NullReporter())
    layout = WorkspaceLayout(workspace)
    for step in ("train", "base-evaluation"):
        layout.marker(step).unlink()
    second = train(run, NullReporter())
    assert second.evaluation == first.evaluation
    assert second.adapter_digest == first.adapter_digest


@pytest.mark.slow
@pytest.mark.parametrize("variant", _VARIANTS)
def test_interrupted_training_resumes_and_ends_with_the_same_adapter(
    prepared_llama: Path, tmp_path: Path, variant: str
) -> None:
    """SIGTERM at step 3 of 8 saves step 3. The second run has the result of an uninterrupted run."""
    settings: dict[str, Any] = {"maximumSteps": 8, "lora": _lora(variant=variant)}
    for name in ("whole", "cut"):
        shutil.copytree(prepared_llama / "workspace", tmp_path / name)
    train(run_spec(tmp_path / "whole", tmp_path / "output", **settings), NullReporter())
    run = run_spec(tmp_path / "cut", tmp_path / "output", **settings)
    with pytest.raises(StageError) as caught:
        train(run, _Recorder(stop_at=3))
    assert caught.value.reason is Reason.INTERRUPTED
    assert "step 3 of 8" in caught.value.message
    assert (WorkspaceLayout(tmp_path / "cut").checkpoints / "checkpoint-3").is_dir()
    progress = _Recorder()
    result = train(run, progress)
    assert result.steps == 8
    resumed = [step for activity, step, loss in progress.seen if activity == "Training" and loss is not None]
    assert resumed == [4, 5, 6, 7, 8]
    assert "EvaluatingBase" not in {activity for activity, _, _ in progress.seen}
    whole, cut = _adapter(tmp_path / "whole"), _adapter(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, cut[name]), name


@pytest.mark.slow
def test_training_skips_a_broken_checkpoint_and_uses_the_previous_one(
    workspace: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_spec(workspace, tmp_path / "output", maximumSteps=6, checkpoint={"intervalSteps": 2})
    with pytest.raises(StageError):
        train(run, _Recorder(stop_at=4))
    checkpoints = WorkspaceLayout(workspace).checkpoints
    broken = checkpoints / "checkpoint-4" / "optimizer.pt"
    broken.write_bytes(broken.read_bytes()[:-100])
    progress = _Recorder()
    train(run, progress)
    assert "checkpoint of step 4 is skipped" in caplog.text
    steps = [step for activity, step, loss in progress.seen if activity == "Training" and loss is not None]
    assert steps == [3, 4, 5, 6]


@pytest.mark.slow
def test_an_interruption_after_the_last_step_repeats_no_step(workspace: Path, tmp_path: Path) -> None:
    """The last step's checkpoint is enough for the evaluation of the tuned model."""
    run = run_spec(workspace, tmp_path / "output", maximumSteps=4)

    class _Stop(_Recorder):
        def update(
            self, activity: str, step: int, total: int | None, *, loss: float | None = None, **more: Any
        ) -> None:
            super().update(activity, step, total, loss=loss, **more)
            if activity == "EvaluatingTuned":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(run, _Stop())
    progress = _Recorder()
    result = train(run, progress)
    assert "Training" not in {activity for activity, _, _ in progress.seen}
    assert result.steps == 4
    assert math.isfinite(result.training_loss)


def test_device_cuda_without_a_gpu_ends_with_gpu_not_visible(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no fallback to the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = run_spec(workspace, tmp_path / "output").model_copy(update={"device": "cuda"})
    with pytest.raises(StageError) as caught:
        train(run, NullReporter())
    assert caught.value.reason is Reason.GPU_NOT_VISIBLE


def test_a_module_that_prepare_did_not_quantize_is_a_mismatch(workspace: Path, tmp_path: Path) -> None:
    layout = WorkspaceLayout(workspace)
    document = json.loads(layout.base_layout.read_text())
    left_out = document["quantized"].pop()
    write_json_atomically(layout.base_layout, document)
    with pytest.raises(StageError) as caught:
        train(run_spec(workspace, tmp_path / "output"), NullReporter())
    assert caught.value.reason is Reason.QUANTIZATION_MISMATCH
    assert left_out in caught.value.message


def test_packed_bytes_that_differ_from_the_record_are_a_mismatch(workspace: Path, tmp_path: Path) -> None:
    layout = WorkspaceLayout(workspace)
    document = json.loads(layout.base_layout.read_text())
    name = document["quantized"][0] + ".weight"
    tensor = next(t for file in document["files"] for t in file["tensors"] if t["name"] == name)
    tensor["shape"][0] *= 2
    write_json_atomically(layout.base_layout, document)
    with pytest.raises(StageError, match="bytes"):
        train(run_spec(workspace, tmp_path / "output"), NullReporter())


@pytest.mark.slow
def test_padding_without_an_embedding_is_replaced(workspace: Path, tmp_path: Path) -> None:
    """A tokenizer may have got its padding token later than the model its embedding."""
    base = WorkspaceLayout(workspace).base
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(base)
    assert train(run_spec(workspace, tmp_path / "output"), NullReporter()).steps == 6


def test_a_nan_loss_ends_the_run_and_names_the_step(workspace: Path, tmp_path: Path) -> None:
    """NaN in the last norm is found at the first step, and no checkpoint is saved."""
    layout = WorkspaceLayout(workspace)
    for path in layout.quantized_model.glob("*.safetensors"):
        tensors = load_file(path)
        if "model.norm.weight" in tensors:
            tensors["model.norm.weight"].fill_(float("nan"))
            save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(StageError) as caught:
        train(run_spec(workspace, tmp_path / "output"), NullReporter())
    assert caught.value.reason is Reason.NON_FINITE_LOSS
    assert "step 1 of 6" in caught.value.message
    assert newest_checkpoint(layout.checkpoints) is None


@pytest.mark.slow
def test_gradient_checkpointing_does_not_change_the_adapter(prepared_llama: Path, tmp_path: Path) -> None:
    for name, value in (("with", True), ("without", False)):
        shutil.copytree(prepared_llama / "workspace", tmp_path / name)
        run = run_spec(tmp_path / name, tmp_path / "output", maximumSteps=3, gradientCheckpointing=value)
        train(run, NullReporter())
    without = _adapter(tmp_path / "without")
    for name, tensor in _adapter(tmp_path / "with").items():
        assert torch.allclose(tensor, without[name], atol=1e-6), name


def test_the_loss_on_a_cpu_equals_the_loss_of_trl(workspace: Path, tmp_path: Path) -> None:
    """Only positions with a label are projected onto the vocabulary. This must not change value or gradient."""
    run = run_spec(workspace, tmp_path / "output", maximumSteps=1)
    layout = WorkspaceLayout(workspace)
    table = open_table(layout.training_table)
    dataset = training_dataset(table)
    watch = ProgressCallback(NullReporter(), StopRequest())
    batching = choose(run.training, table.longest(), None, None)
    trainer = _build_trainer(run, layout, _load(run, layout), dataset, batching, 1, watch)
    rows = [dataset[index] for index in range(2)]
    (packed,) = StepCollator(batching)(rows).passes
    padded: Any = DataCollatorForLanguageModeling(pad_token_id=0)(rows)
    found = []
    for compute, inputs in (
        (trainer.compute_loss, packed),
        (super(AdapterTrainer, trainer).compute_loss, padded),
    ):
        trainer.adapted.zero_grad()
        attention = using_attention(trainer.model, trainer.attention.implementation)
        with attention if inputs is packed else nullcontext():
            loss = compute(trainer.model, inputs)
            loss.backward()
        gradients = {n: p.grad.clone() for n, p in trainer.adapted.named_parameters() if p.grad is not None}
        found.append((loss.item(), gradients))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert found[0][1].keys() == found[1][1].keys()
    for name, gradient in found[0][1].items():
        assert torch.allclose(gradient, found[1][1][name], rtol=1e-3, atol=1e-6), name


def test_a_training_with_kernels_ends_as_one_without(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Substitutes take the place of a GPU's kernels. What MERGE gets is computed by the reference."""
    other = tmp_path / "other"
    shutil.copytree(workspace, other)
    kernels = EqualKernels()
    settings: dict[str, Any] = {"maximumSteps": 3, "gradientCheckpointing": True}
    monkeypatch.setattr(stage, "device_kernels", lambda _device: on_a_gpu(kernels))
    fused = train(run_spec(workspace, tmp_path / "output", **settings), _Recorder())
    calls = kernels.calls.copy()
    plain = train(run_spec(other, tmp_path / "output", kernels="Reference", **settings), _Recorder())
    assert calls["SwiGlu"] > 0
    assert kernels.calls == calls
    assert fused.kernels is not None
    assert plain.kernels is not None
    assert fused.kernels.used == ("RmsNorm", "Rope", "SwiGlu")
    assert (plain.kernels.used, plain.kernels.reason) == ((), "training.kernels is Reference")
    assert fused.training_loss == pytest.approx(plain.training_loss, abs=1e-5)
    assert fused.evaluation.base_loss == plain.evaluation.base_loss
    expected = _adapter(other)
    for name, value in _adapter(workspace).items():
        assert torch.allclose(value, expected[name], atol=2e-5), name


def test_compiled_kernels_stay_in_the_claim_of_the_model_cache_or_in_the_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = WorkspaceLayout(tmp_path / "workspace")
    monkeypatch.delenv(VARIABLE, raising=False)
    assert stage._archive(run_spec(workspace.root, tmp_path), workspace)[1] is None
    on_gpu = run_spec(workspace.root, tmp_path, device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert stage._archive(on_gpu, workspace)[1] is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    folder, name = stage._archive(on_gpu, workspace)
    assert folder == workspace.root / "compiled"
    assert (name or "").startswith("sm90-torch")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "claim"))
    assert stage._archive(on_gpu, workspace) == (tmp_path / "claim", name)


def test_an_interrupted_run_continues_with_the_kernels_with_which_it_began(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    shutil.copytree(workspace, other)
    found: list[Any] = []
    for root, before, after in ((workspace, True, True), (other, False, True)):
        for fused, stop in ((before, 2), (after, None)):
            kernels = EqualKernels()
            offer = on_a_gpu(kernels) if fused else DeviceKernels("cpu")
            monkeypatch.setattr(stage, "device_kernels", lambda _device, offer=offer: offer)
            run = run_spec(root, tmp_path / "output", maximumSteps=4)
            if stop is None:
                found.append(train(run, _Recorder()).kernels)
                continue
            with pytest.raises(StageError) as caught:
                train(run, _Recorder(stop_at=stop))
            assert caught.value.reason is Reason.INTERRUPTED
    assert found[0].used == ("RmsNorm", "Rope", "SwiGlu")
    assert found[1].used == ()
    assert "began without kernels, and continues as it began" in found[1].reason


@pytest.mark.gpu
@pytest.mark.parametrize("weights", ["Quantized", "Dequantized"])
@pytest.mark.parametrize("optimizer", ["AdamW", "AdamW8Bit", "PagedAdamW8Bit"])
def test_training_with_a_gpu_uses_the_gpu(
    workspace: Path, tmp_path: Path, optimizer: str, weights: str
) -> None:
    chosen = {"optimizer": optimizer, "weights": weights}
    run = run_spec(workspace, tmp_path / "output", device="cuda", maximumSteps=20, **chosen)
    result = train(run, NullReporter())
    assert result.device == torch.cuda.get_device_name()
    assert torch.cuda.max_memory_allocated() > 0
    assert math.isfinite(result.evaluation.tuned_loss)
