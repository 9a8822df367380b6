"""Shapes of published models whose family has no closed form, each with a plan: for these, a job depends on its trace.

An entry has those members of the model's config.json that differ from transformers' default config of its type. For many
types, this default is the config of a published model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from finetune_operator.sizing.memory.training_plan import TrainingPlan
from transformers import AutoConfig


@dataclass(frozen=True)
class Published:
    """A published model, its family's `kind`, members of its config.json, and the plan with which it is compared."""

    name: str
    kind: str
    members: dict[str, Any]
    plan: TrainingPlan
    whole: bool = False
    """Its layers share values or modules, so that the trace runs all of them."""

    def with_layers(self, count: int) -> Published:
        """Return the same model with fewer layers."""
        named = "n_layer" if "n_layer" in self.members else "num_hidden_layers"
        return replace(self, members={**self.members, named: count})

    @property
    def document(self) -> dict[str, Any]:
        """The config.json."""
        return default_config(self.kind, **self.members)


def default_config(kind: str, **changes: Any) -> dict[str, Any]:
    """Return the config that transformers ships for a model type, with changes."""
    document = AutoConfig.for_model(kind, **changes).to_dict()
    return {name: value for name, value in document.items() if value is not None} | {"model_type": kind}


def _sizes(
    vocabulary: int, hidden: int, intermediate: int, layers: int, heads: int, shared: int, **more: Any
) -> dict[str, Any]:
    """Return the usual members; `shared` is the number of key and value heads."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        **more,
    }


def _experts(count: int, chosen: int, width: int, **more: Any) -> dict[str, Any]:
    return {"num_experts": count, "num_experts_per_tok": chosen, "moe_intermediate_size": width, **more}


def _model(
    name: str, kind: str, members: dict[str, Any], plan: TrainingPlan, *, whole: bool = False
) -> Published:
    return Published(name, kind, members, plan, whole)


_LONG = TrainingPlan(2048, gradient_accumulation=16)
_SHORT = TrainingPlan(512, 2, gradient_accumulation=8)
_ODD, _ROWS, _TINY = TrainingPlan(777), TrainingPlan(200, 8), TrainingPlan(7, 8)
_KEPT = TrainingPlan(384, gradient_checkpointing=False)
_ATTENTION = TrainingPlan(1000, gradient_accumulation=2, target_modules="AttentionOnly")
_HALVES = ["sliding_attention", "full_attention"]

DENSE: tuple[Published, ...] = (
    _model("BitNet b1.58 2B", "bitnet", {}, _SHORT),
    _model(
        "BLOOM 7.1B",
        "bloom",
        {"vocab_size": 250880, "hidden_size": 4096, "n_layer": 30, "n_head": 32},
        _SHORT,
    ),
    _model(
        "CodeGen 350M",
        "codegen",
        {"n_embd": 1024, "n_layer": 20, "n_head": 16, "rotary_dim": 32, "vocab_size": 51200},
        _ROWS,
    ),
    _model("DiffLlama 375M", "diffllama", {}, _ODD),
    _model(
        "Gemma 3n E2B",
        "gemma3n_text",
        {"num_hidden_layers": 30, "intermediate_size": 8192, "num_kv_shared_layers": 10},
        _SHORT,
        whole=True,
    ),
    _model("Gemma 3n E4B", "gemma3n_text", {}, _ODD, whole=True),
    _model("GPT-2 XL", "gpt2", {"n_embd": 1600, "n_layer": 48, "n_head": 25}, _ODD),
    _model("GPT-J 6B", "gptj", {}, _KEPT),
    _model("GPT-Neo 1.3B", "gpt_neo", {}, _SHORT),
    _model("InternLM3 8B", "internlm3", {}, _LONG),
    _model("MiniCPM3 4B", "minicpm3", {}, _LONG),
    _model("MPT 7B", "mpt", {"d_model": 4096, "n_heads": 32, "n_layers": 32, "vocab_size": 50432}, _SHORT),
    _model(
        "OPT 6.7B",
        "opt",
        {
            "hidden_size": 4096,
            "ffn_dim": 16384,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "word_embed_proj_dim": 4096,
        },
        _ATTENTION,
    ),
    _model("Persimmon 8B", "persimmon", {}, _SHORT),
    _model(
        "StarCoder 15.5B",
        "gpt_bigcode",
        {
            "vocab_size": 49152,
            "n_embd": 6144,
            "n_layer": 40,
            "n_head": 48,
            "n_inner": 24576,
            "n_positions": 8192,
        },
        _LONG,
    ),
    _model("VaultGemma 1B", "vaultgemma", {}, _KEPT),
    _model("XGLM 564M", "xglm", {}, _ROWS),
    _model("Youtu-LLM 2B", "youtu", {}, _ROWS),
)
HYBRID: tuple[Published, ...] = (
    _model("Bamba 9B", "bamba", {"attn_layer_indices": [9, 18, 27]}, _SHORT),
    _model("Codestral Mamba 7B", "mamba2", {}, _SHORT),
    _model(
        "Falcon-H1 7B",
        "falcon_h1",
        _sizes(
            130048,
            3072,
            12288,
            44,
            12,
            2,
            head_dim=128,
            mamba_d_ssm=3072,
            mamba_n_heads=24,
            mamba_d_head=128,
            mamba_d_state=256,
        ),
        _ODD,
    ),
    _model(
        "Falcon Mamba 7B",
        "falcon_mamba",
        {
            "hidden_size": 4096,
            "intermediate_size": 8192,
            "num_hidden_layers": 64,
            "vocab_size": 65024,
            "time_step_rank": 256,
            "tie_word_embeddings": False,
        },
        TrainingPlan(64),
    ),
    _model(
        "Mamba 2.8B",
        "mamba",
        {"hidden_size": 2560, "intermediate_size": 5120, "num_hidden_layers": 64, "time_step_rank": 160},
        TrainingPlan(64, 2),
    ),
    _model("Qwen3.5 9B", "qwen3_5_text", {}, _SHORT),
    _model(
        "Qwen3.5 27B", "qwen3_5_text", _sizes(248320, 5120, 17408, 64, 24, 4, linear_num_value_heads=48), _ODD
    ),
)
EXPERTS: tuple[Published, ...] = (
    _model(
        "DeepSeek V2 Lite",
        "deepseek_v2",
        _sizes(
            102400,
            2048,
            10944,
            27,
            16,
            16,
            q_lora_rank=None,
            first_k_dense_replace=1,
            moe_intermediate_size=1408,
            num_experts_per_tok=6,
        ),
        _ODD,
    ),
    _model("ERNIE 4.5 21B A3B", "ernie4_5_moe", {}, _ATTENTION),
    _model("GLM 4.5 Air", "glm4_moe", {}, _SHORT),
    _model("GLM 4.7 Flash", "glm4_moe_lite", {}, _ODD),
    _model(
        "gpt-oss 20B",
        "gpt_oss",
        {"num_hidden_layers": 24, "num_local_experts": 32, "layer_types": _HALVES * 12},
        _SHORT,
    ),
    _model("gpt-oss 120B", "gpt_oss", {}, _ATTENTION),
    _model(
        "Granite 3.1 1B A400M",
        "granitemoe",
        _sizes(
            49155, 1024, 512, 24, 16, 8, num_local_experts=32, num_experts_per_tok=8, tie_word_embeddings=True
        ),
        _ROWS,
    ),
    _model(
        "Granite 3.1 3B A800M",
        "granitemoe",
        _sizes(
            49155, 1536, 512, 32, 24, 8, num_local_experts=40, num_experts_per_tok=8, tie_word_embeddings=True
        ),
        _KEPT,
    ),
    _model("Jamba v0.1", "jamba", {}, TrainingPlan(64)),
    _model("Llama 4 Scout", "llama4_text", {}, _SHORT),
    _model("MiniMax M2", "minimax_m2", {}, _SHORT),
    _model("Mixtral 8x7B", "mixtral", {}, _LONG),
    _model("Mixtral 8x22B", "mixtral", _sizes(32768, 6144, 16384, 56, 48, 8), _ODD),
    _model(
        "Moonlight 16B A3B",
        "deepseek_v3",
        _sizes(
            163840,
            2048,
            11264,
            27,
            16,
            16,
            q_lora_rank=None,
            n_routed_experts=64,
            n_shared_experts=2,
            num_experts_per_tok=6,
            n_group=1,
            topk_group=1,
            first_k_dense_replace=1,
            moe_intermediate_size=1408,
        ),
        _SHORT,
    ),
    _model("OLMoE 7B A1B", "olmoe", {"intermediate_size": 1024}, _ROWS),
    _model("Phi-3.5 MoE", "phimoe", {"attention_bias": True, "lm_head_bias": True}, _LONG),
    _model("Qwen1.5 MoE A2.7B", "qwen2_moe", {}, _TINY),
    _model(
        "Qwen2 57B A14B",
        "qwen2_moe",
        _sizes(
            151936, 3584, 18944, 28, 28, 4, **_experts(64, 8, 2560, shared_expert_intermediate_size=20480)
        ),
        _ODD,
    ),
    _model("Qwen3 30B A3B", "qwen3_moe", _sizes(151936, 2048, 6144, 48, 32, 4, head_dim=128), _SHORT),
    _model("Qwen3.5 35B A3B", "qwen3_5_moe_text", {}, _ODD),
    _model("ZAYA1 8B", "zaya", {}, _ODD),
)
LARGE: tuple[Published, ...] = (
    _model("DeepSeek V3", "deepseek_v3", {}, _SHORT),
    _model(
        "GLM 4.5",
        "glm4_moe",
        _sizes(
            151552,
            5120,
            12288,
            92,
            96,
            8,
            n_routed_experts=160,
            moe_intermediate_size=1536,
            first_k_dense_replace=3,
            use_qk_norm=True,
        ),
        _SHORT,
    ),
    _model(
        "Kimi K2",
        "deepseek_v3",
        _sizes(
            163840,
            7168,
            18432,
            61,
            64,
            64,
            n_routed_experts=384,
            n_group=1,
            topk_group=1,
            first_k_dense_replace=1,
        ),
        _SHORT,
    ),
    _model(
        "Llama 4 Maverick", "llama4_text", {"num_local_experts": 128, "interleave_moe_layer_step": 2}, _SHORT
    ),
    _model(
        "Qwen3 235B A22B",
        "qwen3_moe",
        _sizes(151936, 4096, 12288, 94, 64, 4, head_dim=128, moe_intermediate_size=1536),
        _SHORT,
    ),
    _model("Qwen3 Next 80B A3B", "qwen3_next", {"intermediate_size": 5120}, _SHORT),
)
MODELS = (*DENSE, *HYBRID, *EXPERTS, *LARGE)
BY_NAME = {model.name: model for model in MODELS}
