from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from finetune_trainer.data.masking.example import IGNORED, Example
from finetune_trainer.evaluation import recording
from finetune_trainer.evaluation.recording import read_record, record
from finetune_trainer.evaluation.scoring import row_losses
from finetune_trainer.model.load import cast_model
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EXAMPLES = [
    Example([1, 2, 3, 4, 5], [IGNORED, IGNORED, 3, 4, 5], row=1),
    Example([8, 9, 1, 2], [IGNORED, 9, IGNORED, 2], row=7),
]


@pytest.fixture
def adapted() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    model: Any = get_peft_model(
        LlamaForCausalLM(config), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    )
    return model.eval()


def write(model: Any, path: Path) -> None:
    tuned = row_losses(model, EXAMPLES, 100, lambda _done, _total: None)
    with model.disable_adapter():
        base = row_losses(model, EXAMPLES, 100, lambda _done, _total: None)
    record(model, EXAMPLES, base, tuned, "sha256:tokens", path)


def logits(model: Any, example: Example) -> torch.Tensor:
    with torch.no_grad():
        found = model(torch.tensor([example.input_ids])).logits[0]
    return torch.log_softmax(found, -1)[[position - 1 for position in example.supervised]]


def test_the_record_has_the_models_own_predictions_with_and_without_the_adapter(
    adapted: Any, tmp_path: Path
) -> None:
    write(adapted, tmp_path / "folder" / "record")
    found = read_record(tmp_path / "folder" / "record")
    assert (found.arithmetic, found.tokenization, found.knows_effect) == ("Float32", "sha256:tokens", True)
    assert {row.example.row for row in found.rows} == {1, 7}
    for row in found.rows:
        trained = logits(adapted, row.example)
        with adapted.disable_adapter():
            base = logits(adapted, row.example)
        targets = torch.tensor([row.example.labels[place] for place in row.example.supervised])[:, None]
        assert row.effect is not None
        assert row.positions == row.example.supervised
        assert torch.allclose(row.log_probabilities, trained, atol=1e-5)
        assert torch.allclose(row.effect.trained, trained.gather(1, targets)[:, 0], atol=1e-5)
        assert torch.allclose(row.effect.base, base.gather(1, targets)[:, 0], atol=1e-5)
        expected = (trained.exp() * (trained - base)).sum(-1)
        assert torch.allclose(row.effect.base_divergence, expected, atol=1e-5)
        assert float(expected.min()) > 1e-6
        assert row.loss.nats == pytest.approx(-float(row.effect.trained.sum()))
        assert row.effect.trained_float32 is None


def test_a_model_in_bf16_is_measured_once_more_in_float32(adapted: Any, tmp_path: Path) -> None:
    # The rounding of the weights is no part of the arithmetic.
    for parameter in adapted.parameters():
        parameter.data = parameter.data.bfloat16().float()
    exact = {example.row: logits(adapted, example) for example in EXAMPLES}
    cast_model(adapted.get_base_model(), torch.bfloat16)
    write(adapted, tmp_path / "record")
    found = read_record(tmp_path / "record")
    assert found.arithmetic == "Measured"
    for row in found.rows:
        assert row.effect is not None
        assert row.effect.trained_float32 is not None
        assert row.effect.base_float32 is not None
        assert row.effect.arithmetic_divergence is not None
        targets = torch.tensor([row.example.labels[place] for place in row.example.supervised])[:, None]
        expected = exact[row.example.row].gather(1, targets)[:, 0]
        assert torch.allclose(row.effect.trained_float32, expected, atol=1e-5)
        assert not torch.allclose(row.effect.trained, expected, atol=1e-5)
        assert float(row.effect.arithmetic_divergence.min()) > 0
    assert {parameter.dtype for parameter in adapted.parameters()} == {torch.bfloat16}


def test_a_device_without_memory_for_float32_leaves_it_unknown(
    adapted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_model: Any) -> Iterator[None]:
        raise torch.OutOfMemoryError

    cast_model(adapted.get_base_model(), torch.bfloat16)
    monkeypatch.setattr(recording, "in_float32", full)
    write(adapted, tmp_path / "record")
    found = read_record(tmp_path / "record")
    assert found.arithmetic == "Unknown"
    assert found.knows_effect
    assert all(row.effect is not None and row.effect.trained_float32 is None for row in found.rows)


def test_the_record_of_an_older_trainer_is_read_without_the_effect(adapted: Any, tmp_path: Path) -> None:
    write(adapted, tmp_path / "record")
    older = ("input_ids", "labels", "positions", "log_probabilities")
    with safe_open(tmp_path / "record", framework="pt") as file:
        tensors = {
            f"{row}.{member}": file.get_tensor(f"{row}.{member}") for row in (0, 1) for member in older
        }
        rows = file.metadata()["rows"]
    assert set(json.loads(rows)[0]) == {"row", "nats", "tokens"}
    save_file(tensors, tmp_path / "older", metadata={"rows": rows})
    found = read_record(tmp_path / "older")
    assert (found.knows_effect, found.arithmetic, found.tokenization) == (False, "Unknown", None)
    assert [row.example.row for row in found.rows] == [
        row.example.row for row in read_record(tmp_path / "record").rows
    ]
