"""What the attention policy is told about a model, and what is applied."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from finetune_trainer.model.attention import allow_kernels, attention_facts, attention_of
from finetune_trainer.model.attention_policy import AttentionChoice, choose_attention
from huggingface_hub.errors import StrictDataclassError
from transformers import DeepseekV3Config, Gemma2Config, Gemma4TextConfig, LlamaConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from tests.support.architectures import FAMILIES, tiny


@pytest.fixture(autouse=True)
def _kernels_as_before() -> Iterator[None]:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    yield
    torch.backends.cuda.enable_cudnn_sdp(before)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_model_is_loaded_with_the_attention_that_the_policy_names(family: str) -> None:
    model = tiny(family)
    choice = attention_of(model.config, "cpu", packed=False)
    assert model.config._attn_implementation == choice.implementation
    assert (choice.backend == "Math") == (choice.implementation == "eager")


def test_the_widths_of_a_head_come_from_the_config() -> None:
    def widths(config: Any) -> tuple[int, int]:
        facts = attention_facts(config, "cpu", packed=True)
        return facts.query_width, facts.value_width

    assert widths(LlamaConfig(hidden_size=64, num_attention_heads=4)) == (16, 16)
    assert widths(LlamaConfig(hidden_size=64, num_attention_heads=4, head_dim=32)) == (32, 32)
    latent = DeepseekV3Config(qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128)
    assert widths(latent) == (192, 128)


def test_layers_of_different_width_count_with_the_widest() -> None:
    facts = attention_facts(Gemma4TextConfig(), "cuda", packed=True, capability=(9, 0))
    assert facts.query_width == 512
    assert choose_attention(facts).backend is None


def test_every_architecture_has_facts_to_choose_by() -> None:
    """A config that cannot be read would end its run while the model is loaded."""
    read = 0
    for kind in MODEL_FOR_CAUSAL_LM_MAPPING:
        try:
            config = kind()
            config.get_text_config()
        except (TypeError, ValueError, StrictDataclassError):
            # It needs arguments, or has several texts. No run gets as far with these.
            continue
        attention_facts(config, "cuda", packed=True, capability=(9, 0))
        read += 1
    assert read > 180


def test_the_cap_of_the_scores_comes_from_the_config() -> None:
    assert attention_facts(Gemma2Config(), "cpu", packed=True).capped
    assert not attention_facts(Gemma2Config(attn_logit_softcapping=None), "cpu", packed=True).capped


def test_a_gpu_is_asked_for_its_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert attention_of(LlamaConfig(), "cuda", packed=True).backend == "Varlen"
    assert attention_facts(LlamaConfig(), "cuda", packed=True, capability=(7, 0)).capability == (7, 0)


def test_an_unknown_architecture_computes_its_scores_itself() -> None:
    config: Any = SimpleNamespace(num_attention_heads=2, hidden_size=16)
    config.get_text_config = lambda: config
    assert attention_of(config, "cpu", packed=False).backend == "Math"


@pytest.mark.parametrize("allowed", [True, False])
def test_what_the_choice_allows_holds_for_the_process(*, allowed: bool) -> None:
    allow_kernels(AttentionChoice("Sdpa", "a test", cudnn=allowed))
    assert torch.backends.cuda.cudnn_sdp_enabled() == allowed
