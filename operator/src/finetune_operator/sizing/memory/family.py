"""The description of a model family."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

Attention = Literal["Separate", "FusedQkv"]
Mlp = Literal["Gated", "FusedGated", "Plain"]
QkNorm = Literal["None", "PerHead", "FullWidth"]
Norm = Literal["Rms", "RmsFloat", "Layer", "LayerFloat", "Centered"]
NormPlaces = Literal["Pre", "PreAndPost", "Post", "Parallel"]
Rope = Literal["Whole", "Joined", "Float"]


@dataclass(frozen=True)
class Family:
    """One `model_type`.

    `attention` says whether q, k and v are separate matrices, and `attention_names` are these matrices and the output.
    `mlp` is the form of the block: gated (down(act(gate x) * up x)), gated with gate and up in one matrix, or plain
    (down(act(up x))). Its width is the member `inner`. `norms` counts the vectors of hidden size in a layer's norms,
    and `parallel_norms` those of a layer with parallel blocks. `parallel`, `qk_normed`, `qkv_bias`, `output_bias` and
    `mlp_bias` are booleans, or the name of the config member that decides. `aliases` are the family's own spellings of
    members, and `overrides` are spellings that win.

    `pattern` is the number of layers after which one has no sliding window, 0 if all have one. `layer_types` says that
    the config may list the kind of each layer, and `default_kind` is the kind of all if it does not. `convolutions` says
    that layers may have a short convolution in place of attention. `activation` is the member with the activation
    function and its default. `dropouts` are members: of attention's result, of the second block's, and of the embeddings.
    """

    defaults: Mapping[str, Any]
    architecture: str | None = None
    attention: Attention = "Separate"
    attention_names: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    mlp: Mlp = "Gated"
    mlp_names: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    inner: str = "intermediate_size"
    norms: int = 2
    norm_bias: bool = False
    final_norm: bool = True
    qk_norm: QkNorm = "None"
    qk_normed: bool | str = True
    qk_bias: bool = False
    qkv_bias: bool | str = False
    output_bias: bool | str = False
    mlp_bias: bool | str = False
    head_bias: bool = False
    aliases: Mapping[str, str] = field(default_factory=dict)
    overrides: Mapping[str, str] = field(default_factory=dict)
    norm: Norm = "Rms"
    norm_places: NormPlaces = "Pre"
    parallel: bool | str = False
    parallel_norms: int = 1
    rope: Rope = "Whole"
    pattern: int = 0
    layer_types: bool = False
    default_kind: str | None = None
    window_flag: str | None = None
    convolutions: bool = False
    scaled_residual: bool = False
    activation: tuple[str, str] = ("hidden_act", "silu")
    dropouts: tuple[str | None, str | None, str | None] = (None, None, None)
