from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer.model.padding_rows import restore_padding_rows
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, YoutuConfig

_SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 3,
}
CONFIGS = {
    # Its initializer writes zeros to the row that has been loaded.
    "youtu": YoutuConfig(
        **_SIZES, kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8
    ),
    "youtu, untied": YoutuConfig(
        **_SIZES,
        kv_lora_rank=8,
        q_lora_rank=None,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=8,
        tie_word_embeddings=False,
    ),
    "llama": LlamaConfig(**_SIZES),
    "no padding token": LlamaConfig(**{**_SIZES, "pad_token_id": None}),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("shard", ["5GB", "2KB"])
def test_a_loaded_model_has_every_value_of_its_files(
    tmp_path: Path, config: PreTrainedConfig, shard: str
) -> None:
    torch.manual_seed(1)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_()
    model.save_pretrained(tmp_path, max_shard_size=shard)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    restore_padding_rows(loaded, tmp_path)
    files = [load_file(path) for path in tmp_path.glob("*.safetensors")]
    found = loaded.state_dict()
    assert all(torch.equal(found[name], value.float()) for file in files for name, value in file.items())
