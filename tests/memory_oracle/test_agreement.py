"""The closed form agrees with the trainer's actual step on fake tensors."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_operator.sizing.memory.estimate import estimate
from finetune_operator.sizing.memory.shape import model_shape
from finetune_operator.sizing.memory.stack import DEFAULT_STACK
from finetune_operator.sizing.memory.terms import Phase
from finetune_operator.sizing.memory.training_plan import TrainingPlan

from tests.support.memory_oracle.fake_run import extrapolate, run_fake

pytestmark = pytest.mark.slow

TOO_MUCH = 1.03
TOO_LITTLE = 0.98


def config(
    family: str, vocabulary: int, hidden: int, inner: int, layers: int, heads: int, kv: int, **others: Any
) -> dict[str, Any]:
    return {
        "model_type": family,
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
        **others,
    }


MISTRAL = config("mistral", 32768, 4096, 14336, 32, 32, 8, sliding_window=None)
MISTRAL_V1 = config("mistral", 32000, 4096, 14336, 32, 32, 8, sliding_window=4096)
LLAMA_8B = config("llama", 128256, 4096, 14336, 32, 32, 8)
LLAMA_2 = config("llama", 32000, 4096, 11008, 32, 32, 32)
LLAMA_70B = config("llama", 128256, 8192, 28672, 80, 64, 8)
SMALL_VOCABULARY = config("llama", 8192, 4096, 14336, 32, 32, 8)
QWEN2 = config("qwen2", 152064, 3584, 18944, 28, 28, 4)
QWEN3 = config("qwen3", 151936, 2048, 6144, 28, 16, 8, head_dim=128, tie_word_embeddings=True)
GEMMA = config("gemma", 256000, 2048, 16384, 18, 8, 1, head_dim=256)
GEMMA_2 = config("gemma2", 256000, 2304, 9216, 26, 8, 4, head_dim=256, sliding_window=4096)
GEMMA_3 = config("gemma3_text", 262144, 2560, 10240, 34, 8, 4, head_dim=256, sliding_window=1024)
PHI_3 = config("phi3", 32064, 3072, 8192, 32, 32, 32)
PHI_4 = config("phi3", 100352, 5120, 17920, 40, 40, 10)
SMOLLM = config("smollm3", 128256, 2048, 11008, 36, 16, 4, tie_word_embeddings=True)
OLMO = config("olmo", 50304, 4096, 11008, 32, 32, 32)
OLMO_2 = config("olmo2", 100352, 4096, 11008, 32, 32, 32)
OLMO_3 = config("olmo3", 100352, 4096, 11008, 32, 32, 32, sliding_window=4096)
GRANITE = config("granite", 49152, 2048, 8192, 40, 32, 8, tie_word_embeddings=True)
STARCODER = config("starcoder2", 49152, 3072, 12288, 30, 24, 2)
SEED = config("seed_oss", 155136, 5120, 27648, 64, 80, 8, head_dim=128)
ARCEE = config("arcee", 128004, 2560, 18432, 36, 20, 4)
ERNIE = config("ernie4_5", 103424, 1024, 3072, 18, 16, 2, head_dim=128, tie_word_embeddings=True)
GLM = config("glm", 151552, 4096, 13696, 40, 32, 2, head_dim=128)
GLM_4 = config("glm4", 151552, 4096, 13696, 40, 32, 2, head_dim=128)
EXAONE = config("exaone4", 102400, 5120, 27392, 64, 40, 8, sliding_window=4096)
COHERE = config("cohere", 256000, 4096, 14336, 32, 32, 8, tie_word_embeddings=True)
COHERE_2 = config("cohere2", 256000, 4096, 14336, 32, 32, 8, tie_word_embeddings=True, sliding_window=4096)
STABLELM = config("stablelm", 100352, 2048, 5632, 24, 32, 32, use_qkv_bias=True)
STABLELM_12B = config(
    "stablelm",
    100352,
    5120,
    13824,
    40,
    32,
    8,
    use_parallel_residual=True,
    qk_layernorm=True,
    hidden_dropout=0.1,
)
PHI_2 = config("phi", 51200, 2560, 10240, 32, 32, 32, resid_pdrop=0.1)
NEOX = config("gpt_neox", 50432, 4096, 16384, 32, 32, 32)
APERTUS = config("apertus", 131072, 4096, 21504, 32, 32, 8)
HUNYUAN = config("hunyuan_v1_dense", 128167, 4096, 14336, 32, 32, 8, head_dim=128)
GRANITE_4 = config(
    "granitemoehybrid", 100352, 2560, 8192, 40, 40, 8, shared_intermediate_size=8192, num_local_experts=0,
    layer_types=["attention"] * 40, tie_word_embeddings=True,
)  # fmt: skip
LFM_2 = config(
    "lfm2",
    65536,
    2048,
    12288,
    16,
    32,
    8,
    layer_types=["conv", "full_attention"] * 8,
    tie_word_embeddings=True,
)
HELIUM = config("helium", 48000, 2560, 7040, 24, 20, 20, head_dim=128)
CWM = config("cwm", 128256, 6144, 21504, 64, 48, 8, head_dim=128, bos_token_id=1)
MINISTRAL_3 = config(
    "ministral3", 131072, 4096, 14336, 34, 32, 8, head_dim=128,
    rope_parameters={"rope_type": "default", "rope_theta": 1e6, "llama_4_scaling_beta": 0.1,
                     "original_max_position_embeddings": 16384},
)  # fmt: skip
NEMOTRON = config("nemotron", 256000, 4096, 16384, 32, 32, 8, head_dim=128)
JAIS_2 = config("jais2", 150272, 3328, 26624, 32, 26, 26)
CLIPPED = {**OLMO, "clip_qkv": 8.0}
DROPPING = {**STARCODER, "residual_dropout": 0.1, "embedding_dropout": 0.1, "attention_dropout": 0.1}

CASES: list[tuple[str, dict[str, Any], TrainingPlan]] = [
    ("mistral", MISTRAL, TrainingPlan(2048)),
    ("mistral, 4 rows", MISTRAL, TrainingPlan(2048, 4)),
    ("mistral, all saved", MISTRAL, TrainingPlan(2048, gradient_checkpointing=False)),
    ("mistral, 2 rows, all saved", MISTRAL, TrainingPlan(1024, 2, gradient_checkpointing=False)),
    ("mistral, short", MISTRAL, TrainingPlan(128)),
    ("mistral, rank 64, accumulated", MISTRAL, TrainingPlan(2048, 1, 8, rank=64)),
    ("mistral, attention only", MISTRAL, TrainingPlan(2048, target_modules="AttentionOnly")),
    ("mistral, dropout", MISTRAL, TrainingPlan(2048, dropout=True)),
    ("mistral, dropout, all saved", MISTRAL, TrainingPlan(2048, dropout=True, gradient_checkpointing=False)),
    ("mistral, DoRA", MISTRAL, TrainingPlan(2048, variant="DoRA")),
    ("mistral, AdamW", MISTRAL, TrainingPlan(2048, rank=128, optimizer="AdamW")),
    ("mistral, 8-bit states", MISTRAL, TrainingPlan(2048, rank=128, optimizer="AdamW8Bit")),
    ("mistral with a window", MISTRAL_V1, TrainingPlan(4096)),
    ("llama 8b", LLAMA_8B, TrainingPlan(1024)),
    ("llama 8b, short, 8 rows", LLAMA_8B, TrainingPlan(256, 8, 2)),
    ("llama 2", LLAMA_2, TrainingPlan(4096, rank=8)),
    ("a small vocabulary", SMALL_VOCABULARY, TrainingPlan(2048)),
    ("qwen 2.5", QWEN2, TrainingPlan(2048)),
    ("qwen 3", QWEN3, TrainingPlan(4096)),
    ("gemma", GEMMA, TrainingPlan(2048)),
    ("gemma 2", GEMMA_2, TrainingPlan(2048)),
    ("gemma 3", GEMMA_3, TrainingPlan(2048)),
    ("phi 3", PHI_3, TrainingPlan(2048, 2)),
    ("smollm 3", SMOLLM, TrainingPlan(4096)),
    ("olmo", OLMO, TrainingPlan(2048)),
    ("olmo 2", OLMO_2, TrainingPlan(2048, target_modules="AttentionOnly", gradient_checkpointing=False)),
    ("olmo 3", OLMO_3, TrainingPlan(4096)),
    ("granite", GRANITE, TrainingPlan(2048)),
    ("starcoder 2", STARCODER, TrainingPlan(2048, dropout=True)),
    ("seed-oss", SEED, TrainingPlan(2048)),
    ("arcee", ARCEE, TrainingPlan(2048)),
    ("ernie 4.5", ERNIE, TrainingPlan(4096)),
    ("glm", GLM, TrainingPlan(2048)),
    ("glm 4", GLM_4, TrainingPlan(2048, gradient_checkpointing=False)),
    ("exaone 4", EXAONE, TrainingPlan(8192)),
    ("cohere", COHERE, TrainingPlan(2048)),
    ("stablelm", STABLELM, TrainingPlan(2048, gradient_checkpointing=False)),
    ("phi 2 with its dropout", PHI_2, TrainingPlan(2048, gradient_checkpointing=False)),
    ("gpt neox", NEOX, TrainingPlan(2048)),
    ("apertus", APERTUS, TrainingPlan(2048)),
    ("lfm 2", LFM_2, TrainingPlan(2048)),
]
"""Return every kind of layer once, and every axis of a plan on Mistral."""
FURTHER: list[tuple[str, dict[str, Any], TrainingPlan]] = [
    ("mistral with a window, long", MISTRAL_V1, TrainingPlan(8192, rank=8)),
    ("llama 8b, long", LLAMA_8B, TrainingPlan(16384)),
    ("llama 70b", LLAMA_70B, TrainingPlan(2048)),
    ("qwen 2.5, all saved", QWEN2, TrainingPlan(1024, gradient_checkpointing=False)),
    ("qwen 3, short", QWEN3, TrainingPlan(512)),
    ("qwen 3, rank 128", QWEN3, TrainingPlan(2048, rank=128)),
    ("gemma 2, long", GEMMA_2, TrainingPlan(4096, 2)),
    ("gemma 2, all saved", GEMMA_2, TrainingPlan(1024, gradient_checkpointing=False)),
    ("gemma 3, below its window", GEMMA_3, TrainingPlan(512, 2)),
    ("phi 3, all saved", PHI_3, TrainingPlan(2048, gradient_checkpointing=False)),
    ("phi 4", PHI_4, TrainingPlan(2048)),
    ("granite, all saved", GRANITE, TrainingPlan(2048, gradient_checkpointing=False)),
    ("cohere, all saved", COHERE, TrainingPlan(2048, gradient_checkpointing=False)),
    ("hunyuan", HUNYUAN, TrainingPlan(2048)),
    ("granite 4", GRANITE_4, TrainingPlan(2048)),
    ("helium", HELIUM, TrainingPlan(2048, gradient_checkpointing=False)),
    ("cwm", CWM, TrainingPlan(2048)),
    ("ministral 3", MINISTRAL_3, TrainingPlan(2048, gradient_checkpointing=False)),
    ("nemotron", NEMOTRON, TrainingPlan(2048, gradient_checkpointing=False)),
    ("jais 2", JAIS_2, TrainingPlan(2048)),
    ("cohere 2", COHERE_2, TrainingPlan(2048)),
    ("stablelm 12b", STABLELM_12B, TrainingPlan(2048, gradient_checkpointing=False)),
    ("phi 2", PHI_2, TrainingPlan(2048)),
    ("gpt neox, all saved", NEOX, TrainingPlan(2048, gradient_checkpointing=False)),
    ("apertus, all saved", APERTUS, TrainingPlan(2048, gradient_checkpointing=False)),
    ("hunyuan, all saved", HUNYUAN, TrainingPlan(1024, 2, gradient_checkpointing=False)),
    ("granite 4, all saved", GRANITE_4, TrainingPlan(2048, gradient_checkpointing=False)),
    ("lfm 2, all saved", LFM_2, TrainingPlan(2048, gradient_checkpointing=False)),
    ("clipped queries, all saved", CLIPPED, TrainingPlan(2048, gradient_checkpointing=False)),
    ("dropouts of the model, all saved", DROPPING, TrainingPlan(2048, gradient_checkpointing=False)),
    (
        "another activation, all saved",
        {**LLAMA_8B, "hidden_act": "gelu_new"},
        TrainingPlan(1024, gradient_checkpointing=False),
    ),
]
"""Return families whose layers are like others', and a second length, rank or kind of checkpointing."""
DEQUANTIZED: list[tuple[str, dict[str, Any], TrainingPlan]] = [
    ("mistral", MISTRAL, TrainingPlan(2048, weights="Dequantized")),
    (
        "qwen 3, all saved",
        QWEN3,
        TrainingPlan(2048, weights="Dequantized", gradient_checkpointing=False, optimizer="AdamW"),
    ),
]
DEQUANTIZED_TOO: list[tuple[str, dict[str, Any], TrainingPlan]] = [
    (
        "mistral, DoRA, dropout, all saved",
        MISTRAL,
        TrainingPlan(2048, weights="Dequantized", gradient_checkpointing=False, variant="DoRA", dropout=True),
    ),
    (
        "llama 8b, attention only, all saved",
        LLAMA_8B,
        TrainingPlan(
            1024, 4, weights="Dequantized", gradient_checkpointing=False, target_modules="AttentionOnly"
        ),
    ),
    ("llama 8b, short", LLAMA_8B, TrainingPlan(64, weights="Dequantized")),
    ("gemma 2", GEMMA_2, TrainingPlan(2048, weights="Dequantized")),
    ("phi 3", PHI_3, TrainingPlan(2048, 2, weights="Dequantized", gradient_checkpointing=False)),
    ("gpt neox", NEOX, TrainingPlan(2048, weights="Dequantized", gradient_checkpointing=False)),
    ("cohere", COHERE, TrainingPlan(2048, weights="Dequantized")),
    ("lfm 2", LFM_2, TrainingPlan(2048, weights="Dequantized", gradient_checkpointing=False)),
]
"""Return plans whose weights are unpacked once."""
PACKED: list[tuple[str, dict[str, Any], TrainingPlan]] = [
    ("mistral, all saved", MISTRAL, TrainingPlan(2048, 4, gradient_checkpointing=False)),
    ("qwen 3, short rows", QWEN3, TrainingPlan(512, 8)),
]
PACKED_TOO: list[tuple[str, dict[str, Any], TrainingPlan]] = [
    ("gemma 2, capped scores", GEMMA_2, TrainingPlan(2048, 2)),
    ("smollm 3, accumulated", SMOLLM, TrainingPlan(256, 16, 2)),
    ("llama 8b", LLAMA_8B, TrainingPlan(1024, 4)),
    ("gemma 3, beyond its window", GEMMA_3, TrainingPlan(2048, 4)),
    ("mistral, DoRA", MISTRAL, TrainingPlan(1024, 4, variant="DoRA")),
]
WHOLE: list[tuple[str, dict[str, Any], TrainingPlan]] = [
    ("mistral", MISTRAL, TrainingPlan(2048)),
    ("qwen 3", QWEN3, TrainingPlan(2048, gradient_checkpointing=False)),
    ("gemma 2", GEMMA_2, TrainingPlan(1024, 2)),
    ("phi 3", PHI_3, TrainingPlan(1024, 1, 4)),
]


def _check(document: dict[str, Any], plan: TrainingPlan, peak: int) -> None:
    found = estimate(model_shape(document), plan, DEFAULT_STACK).visible_peak_bytes
    assert TOO_LITTLE * peak <= found <= TOO_MUCH * peak, f"{found / peak - 1:+.2%} of {peak / 2**30:.3f} GiB"


def _parameters(
    cases: list[tuple[str, dict[str, Any], TrainingPlan]], *marks: pytest.MarkDecorator
) -> list[Any]:
    return [pytest.param(document, plan, id=name, marks=marks) for name, document, plan in cases]


@pytest.mark.parametrize(("document", "plan"), [*_parameters(CASES), *_parameters(FURTHER, pytest.mark.full)])
def test_the_closed_form_agrees_with_the_trainers_step(document: dict[str, Any], plan: TrainingPlan) -> None:
    """Layers have full width; the peak of all layers is extrapolated from runs with two and four layers."""
    _check(document, plan, extrapolate(document, plan).peak_bytes)


@pytest.mark.parametrize(
    ("document", "plan"), [*_parameters(PACKED), *_parameters(PACKED_TOO, pytest.mark.full)]
)
def test_the_closed_form_agrees_with_a_step_of_packed_rows(
    document: dict[str, Any], plan: TrainingPlan
) -> None:
    """A pass holds as many of the longest rows as the micro-batch has, which is the most that a plan allows."""
    _check(document, plan, extrapolate(document, plan, packed=True).peak_bytes)


@pytest.mark.parametrize(
    ("document", "plan"), [*_parameters(DEQUANTIZED), *_parameters(DEQUANTIZED_TOO, pytest.mark.full)]
)
def test_the_closed_form_agrees_with_a_step_on_dequantized_weights(
    document: dict[str, Any], plan: TrainingPlan
) -> None:
    _check(document, plan, extrapolate(document, plan).peak_bytes)


@pytest.mark.parametrize("document", [SMALL_VOCABULARY, PHI_3], ids=["llama", "phi 3"])
def test_loading_holds_one_matrix_twice_and_never_all(document: dict[str, Any]) -> None:
    """The oracle's phase has the adapter, too."""
    plan = TrainingPlan(64, weights="Dequantized", rank=1)
    found = estimate(model_shape(document), plan, DEFAULT_STACK)
    adapter = sum(term.bytes for term in found.terms if (term.phase, term.name) == (Phase.PREPARE, "adapter"))
    peak = extrapolate(document, plan).phases["Load"]
    assert found.phases[Phase.LOAD] == pytest.approx(peak - adapter, rel=0.005)
    packed = estimate(model_shape(document), TrainingPlan(64, rank=1), DEFAULT_STACK).phases[Phase.LOAD]
    assert peak < found.phases[Phase.PREPARE] + packed // 10


def test_packed_rows_beyond_their_window_need_no_mask_and_so_no_more_than_planned() -> None:
    plan = TrainingPlan(8192)
    peak = extrapolate(MISTRAL_V1, plan, packed=True).peak_bytes
    assert peak <= estimate(model_shape(MISTRAL_V1), plan, DEFAULT_STACK).visible_peak_bytes <= 1.05 * peak


@pytest.mark.full
@pytest.mark.parametrize(("document", "plan"), _parameters(WHOLE))
def test_the_closed_form_agrees_with_a_step_of_the_whole_model(
    document: dict[str, Any], plan: TrainingPlan
) -> None:
    _check(document, plan, run_fake(document, plan).peak_bytes)
