from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.describe import inspect_base_model
from finetune_trainer.stages.prepare.length import require_length
from transformers import LlamaConfig, OPTConfig

if TYPE_CHECKING:
    from finetune_trainer.model.describe import BaseModel

_SIZES: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 8,
}


def described(folder: Path, config: Any) -> BaseModel:
    config.save_pretrained(folder)
    return inspect_base_model(folder)


def test_learned_positions_are_the_longest_row(tmp_path: Path) -> None:
    base = described(tmp_path, OPTConfig(**_SIZES, ffn_dim=512, word_embed_proj_dim=64))
    require_length(8, base)
    with pytest.raises(
        StageError, match="must be at most the 8 positions that OPTForCausalLM has, found 9"
    ) as caught:
        require_length(9, base)
    assert caught.value.reason is Reason.LENGTH_NOT_SUPPORTED
    assert "training.maximumLength: 8 or less" in caught.value.message


def test_rotary_positions_have_no_end(tmp_path: Path) -> None:
    require_length(4096, described(tmp_path, LlamaConfig(**_SIZES, intermediate_size=64)))
