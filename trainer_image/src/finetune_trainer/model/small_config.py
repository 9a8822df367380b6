"""Shrinks the config of any causal language model to one whose model is built and tried in a second.

Only sizes change. Members are known by their names, so a new family of the usual vocabulary needs no rule of its own. The
small model keeps what the architecture is made of: two layers of each kind, shared heads, experts, tied matrices.
"""

from __future__ import annotations

import re
from typing import Any

WIDTH, HEADS, HEAD, FEED_FORWARD, EXPERTS, PER_KIND = 64, 4, 16, 128, 4, 2
VOCABULARY = 320
LARGEST_VOCABULARY = 1 << 19
"""Twice that of any published model: with WIDTH columns, its matrices take 128 MiB each in float32."""
_POSITIONS = 256
_WINDOW = 8
_ROTATED = 8
# The first pattern that matches a member's whole name decides.
_SIZES: tuple[tuple[str, int], ...] = (
    (r"vocab_size_per_layer_input|decoder_vocab_size|unpadded_vocab_size|vocab_size", VOCABULARY),
    (r"hidden_size_per_layer_input|laurel_rank|loop_gate_rank|gated_norm_rank|router_hidden_size", 16),
    (r"adapter_rank|hc_lowrank|d_rel|ple_embed_dim|dim_model_base", 16),
    (
        r"(word_embed_proj|hidden|d_model|n_embd|emb|embedding)(_dim|_size)?|dim|lru_width|d_model|n_embd",
        WIDTH,
    ),
    (r"(input_|output_)?embedding_size", WIDTH),
    (r"attention_hidden_size|hidden_size_global", WIDTH),
    # What one part of a model gives another part.
    (r"(out|text|audio|vision)_hidden_size", WIDTH),
    (
        r"moe_(shared_expert_)?intermediate_size|(shared_expert|shared_experts|expert)_intermediate_size",
        WIDTH,
    ),
    (r"expert_ffn_hidden_size", WIDTH),
    (
        r"(\w+_)?(intermediate_size|ffn_dim|ffn_hidden_size|ffn_size|inner_dim|n_inner|feed_forward_size|dim_ff|dff)",
        FEED_FORWARD,
    ),
    (r"intermediate_size_mlp|d_inner|block_ff_dim", FEED_FORWARD),
    (r"(qk_rope|index)_head_dim|qk_rope_dim", _ROTATED),
    (r"qk_head_dim", 24),
    (r"(\w+_)?head_dim(_\w+)?|dim_head|kv_channels|attention_head_size|d_head|attention_head_dim|d_kv", HEAD),
    (r"mamba_d_head|mamba_headdim", HEAD),
    (r"(swa_)?num_key_value_heads|num_query_groups", 2),
    (r"linear_num_key_heads", 2),
    (r"mamba_n_heads|mamba_num_heads", 2 * WIDTH // HEAD),
    (r"n_mamba_heads", 2),
    (r"(\w+_)?(num_(attention_|value_)?heads|n_heads?|attention_heads)", HEADS),
    (r"(q|kv|o)_lora_rank", 32),
    (r"o_groups", 2),
    (r"mamba_d_ssm", 2 * WIDTH),
    (r"(mamba_d_state|ssm_state_size|state_size)", HEAD),
    (r"n_groups|mamba_n_groups|mamba_ngroups", 1),
    (r"mamba_dt_rank|time_step_rank", 4),
    (r"mamba_chunk_size|chunk_size|block_multiple_of|block_size|attention_chunk_size", _WINDOW),
    (r"(moe_)?(n|num)_(\w+_)?experts|moe_num_experts|zero_expert_num", EXPERTS),
    (r"num_experts_per_tok(en)?|moe_topk|moe_k|moe_top_k|experts_per_token|top_k_experts", 2),
    (r"n_group|topk_group|num_expert_group", 1),
    (r"index_topk|index_topk_blocks|index_block_size", 4),
    (r"index_kpool", 2),
    (r"cross_attn_k", 1),
    (r"\w*hash_byte_group_vocab", VOCABULARY),
    (
        r"(sliding|attention|local_attention)_window(_size|_len)?|sliding_window_size|window_size|local_attention",
        _WINDOW,
    ),
    (
        r"(original_)?max_(position_embeddings|seq_len|sequence_length)|n_positions|n_ctx|context_length|model_max_length",
        _POSITIONS,
    ),
    (r"max_(target|source)_positions", _POSITIONS),
    (r"rotary_dim", 8),
    (r"first_k_dense_replace|num_dense_layers|moe_layer_start_index", 1),
    (r"num_nextn_predict_layers|num_kv_shared_layers", 0),
    (r"(attn|expert)_layer_period|layer_group_size|global_attn_every_n_layers|no_rope_layer_interval", 2),
    (r"(attn|expert)_layer_offset", 1),
    (r"_?sliding_window_pattern|decoder_sparse_step|interleave_moe_layer_step", 2),
    (r"max_window_layers", 2),
    (r"query_pre_attn_scalar", HEAD),
)
_COMPILED = tuple((re.compile(pattern), value) for pattern, value in _SIZES)
_LAYERS = re.compile(
    r"num_hidden_layers|n_layers?|num_layers|(num_)?(encoder|decoder)_layers|num_blocks|num_layers_per_stack"
)
# Shared experts are counted in the same words as routed ones, but a pair of them would be one wider layer.
_KEPT_COUNTS = re.compile(r"(moe_)?(n|num)_shared_experts")
_TOKENS = re.compile(r"\w+_token_(id|index)|\w+_(image|audio)_token")
_PERIODS = re.compile(r"period|pattern|interval|step|every_n|replace|num_dense|start_index|group_size")
_SHARED_HEADS = re.compile(r"(swa_)?num_key_value_heads|num_query_groups")
_ROTARY = frozenset({"rope_parameters", "rope_scaling"})
_LAYERS_OF_THEIR_OWN = "per_layer_config"
_REQUIRED = {
    "head_dim": HEAD,
    "num_key_value_heads": HEADS,
    "num_experts_per_tok": 2,
    "n_routed_experts": EXPERTS,
}
_LAYER_NUMBERS = frozenset({"moe_layers", "hybrid_layer_ids", "full_attn_idxs"})
# The states of these layers go to another part, so each of them must be a layer that the small part has.
_TAPPED_LAYERS = re.compile(r"vision_feature_layers?|deepstack_visual_index(es)?|deepstack_layer_map")
# The layers of a model in three parts, whose counts add up to all layers.
_STRETCHES = re.compile(r"n_(input|recurrent|output)_layers")
_KINDS = re.compile(
    r"layer_types|layers_block_type|mlp_layer_types|block_types|attention_layers|attn_layers|indexer_types"
)


def small_document(document: dict[str, Any], vocabulary: int | None = VOCABULARY) -> dict[str, Any]:
    """Return the members of a smaller config of the same architecture; `document` is a config's `to_dict`.

    `vocabulary` is the number of ids. None keeps that of the model, unless a trial could not hold its matrices.
    """
    return _Shrinking(document, vocabulary).document()


class _Shrinking:
    """The choices for one config: which layers stay, and how large each member becomes."""

    def __init__(self, document: dict[str, Any], vocabulary: int | None) -> None:
        if vocabulary is None and document.get("vocab_size", 0) > LARGEST_VOCABULARY:
            vocabulary = VOCABULARY
        self._document, self._vocabulary = document, vocabulary
        lists = [
            value
            for name, value in document.items()
            if _KINDS.fullmatch(name) and isinstance(value, list) and value
        ]
        self._places: list[int] = []
        self._depth = next(
            (value for name, value in document.items() if _LAYERS.fullmatch(name) and type(value) is int), 0
        )
        if lists and len({len(value) for value in lists}) == 1:
            self._depth = len(lists[0])
            self._places = _first_of_each(list(zip(*lists, strict=True)))
        periodic = any(_PERIODS.search(name) for name, value in document.items() if value)
        self._layers = len(self._places) or (2 * PER_KIND if periodic else PER_KIND)
        self._places = self._places or list(range(min(self._layers, self._depth)))

    def document(self) -> dict[str, Any]:
        """Return the smaller config."""
        return {name: self._member(name, value) for name, value in self._document.items()}

    def _member(self, name: str, value: Any) -> Any:
        if value is None and name in _REQUIRED:
            # Some families have no value by default, and take it as it is.
            return _REQUIRED[name]
        if isinstance(value, dict):
            if name in _ROTARY:
                return self._with_latent_part(_rotary(value, self._rotated()))
            if name == _LAYERS_OF_THEIR_OWN:
                return self._own_layers(value)
            return small_document(value, self._vocabulary) if "model_type" in value else value
        if isinstance(value, list):
            return self._list(name, value)
        return value if isinstance(value, bool) or not isinstance(value, int) else self._number(name, value)

    def _own_layers(self, value: dict[Any, Any]) -> dict[Any, Any]:
        """Shrink the members that some layers have for themselves, by the numbers of the layers that stay."""
        found = {}
        for new, place in enumerate(self._places):
            for key, members in value.items():
                if int(key) == place and isinstance(members, dict):
                    own = _Shrinking({**self._document, **members}, self._vocabulary)
                    number = str(new).zfill(len(key)) if isinstance(key, str) else new
                    found[number] = {name: own._number(name, member) for name, member in members.items()}
        return found

    def _list(self, name: str, value: list[Any]) -> list[Any]:
        if self._depth and len(value) == self._depth:
            return [self._number(name.removesuffix("_per_layer"), value[place]) for place in self._places]
        if _TAPPED_LAYERS.fullmatch(name):
            return _first_layers(value)
        if value and name.endswith("_intermediate_size"):
            return [self._number(name, one) for one in value]  # experts of two kinds
        return self._layer_numbers(value) if name in _LAYER_NUMBERS else value

    def _layer_numbers(self, numbers: list[Any]) -> list[int]:
        """Return which of the layers that stay are among `numbers`; every second one if none is."""
        found = [new for new, place in enumerate(self._places) if place in numbers]
        return found or [index for index in range(self._layers) if index % 2]

    def _number(self, name: str, value: Any) -> Any:
        if type(value) is not int or value in {0, -1}:
            return value
        if _TOKENS.fullmatch(name):
            return value if self._vocabulary is None else min(value, self._vocabulary - 1)
        counted = self._count(name) or self._related(name, value)
        if counted is not None:
            return counted
        size = next((size for pattern, size in _COMPILED if pattern.fullmatch(name)), None)
        if name == "head_dim" and value == self._document.get("qk_rope_head_dim"):
            # Latent attention: the member is the part of a head that is rotated.
            size = _ROTATED
        if name == "num_heads" and "expand" in self._document:
            # Heads of a state space share its own width, which is larger than that of the model.
            size = 2 * WIDTH // HEAD
        if size is None or size == VOCABULARY:
            return value if size is None or self._vocabulary is None else self._vocabulary
        if _SHARED_HEADS.fullmatch(name):
            return self._shared_heads(name, value)
        # Widths fit each other only with these sizes; counts may be smaller.
        return size if size >= _WINDOW else min(value, size)

    def _with_latent_part(self, document: dict[str, Any]) -> dict[str, Any]:
        """Set the rotated share of a head to that of the small model, if a head of latent attention counts both parts."""
        head = _latent_head(self._document)
        if head is None or "partial_rotary_factor" not in document or self._document.get("head_dim") != head:
            return document
        return {**document, "partial_rotary_factor": _ROTATED / (HEAD + _ROTATED)}

    def _rotated(self) -> int:
        """Return how much of a head is rotated."""
        return _ROTATED if self._document.get("qk_rope_head_dim") else HEAD

    def _count(self, name: str) -> int | None:
        """Return the small count of layers or shared experts; None for another member."""
        if _LAYERS.fullmatch(name):
            return self._layers
        if _STRETCHES.fullmatch(name):
            return self._layers // 3
        return 1 if _KEPT_COUNTS.fullmatch(name) else None

    def _related(self, name: str, value: int) -> int | None:
        """Return the small size of a member that is a fixed share or multiple of another one; None if it is not."""
        hidden = self._document.get("hidden_size")
        if type(hidden) is not int or hidden <= 0:
            return None
        wide = self._document.get("attention_hidden_size")
        multiple = wide // hidden if type(wide) is int and wide % hidden == 0 else 1
        shares = {
            "attention_hidden_size": (True, multiple * WIDTH),
            "attention_head_dim": (multiple > 1, multiple * WIDTH // HEADS),
            # Two heads share the width of the state space.
            "mamba_headdim": ("n_mamba_heads" in self._document, _expansion(self._document) * WIDTH // 2),
            "codebook_dim": (value == hidden, WIDTH),
            # Some layers of latent attention have plain heads of the same width.
            "head_dim": (value == _latent_head(self._document), HEAD + _ROTATED),
            # A connector that is narrow in its middle.
            "intermediate_size": (
                value < hidden and "vocab_size" not in self._document,
                max(1, WIDTH * value // hidden),
            ),
        }
        holds, size = shares.get(name, (False, 0))
        return size if holds else None

    def _shared_heads(self, name: str, value: int) -> int:
        heads = self._document.get(
            name.replace("key_value", "attention"), self._document.get("num_attention_heads")
        )
        if value == 1:
            return 1
        return HEADS if isinstance(heads, int) and value >= heads else HEADS // 2


def _latent_head(document: dict[str, Any]) -> int | None:
    """Return the width of a head of latent attention with both of its parts; None if there is none."""
    plain, rotated = document.get("qk_nope_head_dim"), document.get("qk_rope_head_dim")
    return (
        plain + rotated if isinstance(plain, int) and isinstance(rotated, int) and plain and rotated else None
    )


def _expansion(document: dict[str, Any]) -> int:
    found = document.get("mamba_expand")
    return found if type(found) is int else 2


def _first_of_each(kinds: list[Any]) -> list[int]:
    """Return the places of the first two layers of each kind, in order."""
    seen: dict[str, int] = {}
    places = []
    for place, kind in enumerate(kinds):
        key = str(kind)
        seen[key] = seen.get(key, 0) + 1
        if seen[key] <= PER_KIND:
            places.append(place)
    return places


def _first_layers(numbers: list[Any]) -> list[Any]:
    """Return as many numbers of the first layers, in the same order."""
    order = sorted({number for number in numbers if type(number) is int and number >= 0})
    return [
        min(order.index(number), PER_KIND - 1) if type(number) is int and number >= 0 else number
        for number in numbers
    ]


def _rotary(document: dict[str, Any], rotated: int) -> dict[str, Any]:
    """Shrink what a rotary embedding shares out over half of a head: sections of several axes, and factors.

    `rotated` is the width of a head that the embedding may rotate.
    """
    part = document.get("partial_rotary_factor") or 1.0
    half = max(1, int(rotated * part) // 2)
    found: dict[str, Any] = {}
    for name, value in document.items():
        if isinstance(value, dict):
            found[name] = _rotary(value, rotated)
        elif name == "mrope_section" and isinstance(value, list):
            rest = half // len(value)
            found[name] = [half - rest * (len(value) - 1), *([rest] * (len(value) - 1))]
        elif name in {"short_factor", "long_factor"} and isinstance(value, list):
            found[name] = value[:half]
        elif name == "original_max_position_embeddings":
            found[name] = _POSITIONS // 2
        else:
            found[name] = value
    return found
