from __future__ import annotations

from typing import Any

import pytest
from finetune_trainer.proof.small_run import small_model
from finetune_trainer.trace.fake_model import build_config, plain_structure, quantized_structure
from finetune_trainer.trace.sharing import shared_groups
from transformers import AutoConfig

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}
# q, k, v, o, gate, up and down.
WEIGHTS = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128


def groups(**changes: Any) -> Any:
    return shared_groups(quantized_structure(plain_structure(build_config({**LLAMA, **changes}))))


def test_a_layer_is_gathered_without_its_vectors() -> None:
    found = groups()
    assert found.layers == 3
    assert found.layer_bytes == WEIGHTS // 2 + WEIGHTS // 64
    assert found.dequantized_layer_bytes == 2 * WEIGHTS
    assert found.embedding_bytes == found.head_bytes == 512 * 64 * 2


def test_a_tied_head_is_part_of_the_embedding() -> None:
    found = groups(tie_word_embeddings=True)
    assert (found.embedding_bytes, found.head_bytes) == (512 * 64 * 2, 0)


def test_a_layer_is_gathered_with_all_its_experts() -> None:
    found = groups(model_type="mixtral", num_local_experts=4, num_experts_per_tok=2)
    attention, experts, router = 2 * 64 * 64 + 2 * 64 * 32, 4 * 3 * 64 * 128, 4 * 64
    packed = (attention + experts) // 2 + (attention + experts) // 64
    assert found.layer_bytes == packed + 2 * router
    # Experts are unpacked one by one in any case.
    assert found.dequantized_layer_bytes == 2 * attention + experts // 2 + experts // 64 + 2 * router


def test_transposed_matrices_are_gathered_in_4_bits() -> None:
    found = groups(model_type="gpt2", n_embd=64, n_layer=2, n_head=2, n_positions=64)
    weights = 12 * 64 * 64
    assert found.layer_bytes == found.dequantized_layer_bytes == weights // 2 + weights // 64


@pytest.mark.parametrize("kind", ["sarvam_moe", "zamba2"])
def test_rows_of_one_tensor_and_tied_layers_cannot_be_shared(kind: str) -> None:
    assert shared_groups(quantized_structure(small_model(AutoConfig.for_model(kind)))) is None
