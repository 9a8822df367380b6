"""Which attention computes the passes of a run, and why. The trainer applies the same value that its result reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Backend = Literal["Varlen", "Sdpa", "RowByRow", "Math"]
"""`Varlen` is torch's kernel for rows of varying length, and `Sdpa` its fused attention of rows of one length.

`RowByRow` computes each row of a pass by itself. `Math` has the scores as tensors of their own.
"""
WIDEST_HEAD = 256
"""Values of a head that FlashAttention takes at most."""
OLDEST_CAPABILITY = (8, 0)
"""FlashAttention 2 needs an Ampere GPU."""
_OLDEST_TORCH = (2, 11)
"""Earlier kernels for rows take no sliding window. The project's minimum is newer; its GPU benchmark may run with this one."""
IMPLEMENTATIONS: dict[Backend, str] = {
    "Varlen": "finetune_packed_varlen",
    "RowByRow": "finetune_packed_rows",
    "Sdpa": "sdpa",
    "Math": "eager",
}
"""Names in transformers' register."""
_NO_CUDNN = "cuDNN's kernel is off, because it makes a plan for every new length"


@dataclass(frozen=True)
class AttentionFacts:
    """What the choice depends on.

    `packed` is set if rows share a pass without padding, `capped` if the model caps its scores (Gemma 2), and `fused` if
    its architecture can use torch's fused attention. The widths are values of a head. `capability` and `rocm` describe a
    GPU, and `torch` is the version of the library.
    """

    device: str
    packed: bool
    capped: bool
    fused: bool
    query_width: int
    value_width: int
    torch: tuple[int, int]
    capability: tuple[int, int] | None = None
    rocm: bool = False


@dataclass(frozen=True)
class AttentionChoice:
    """The attention of a run's passes, and why. Without a backend, rows cannot be packed, and `reason` says why.

    `cudnn` is set if torch's fused attention may take cuDNN's kernel.
    """

    backend: Backend | None
    reason: str
    cudnn: bool

    @property
    def implementation(self) -> str:
        """The name in transformers' register. Raises ValueError without a backend."""
        if self.backend is None:
            raise ValueError(f"a run must have a backend for its attention, found none: {self.reason}")
        return IMPLEMENTATIONS[self.backend]


def choose_attention(facts: AttentionFacts) -> AttentionChoice:
    """Choose the attention for `facts`."""
    backend, reason = _packed(facts) if facts.packed else _padded(facts)
    return AttentionChoice(backend, reason, cudnn=facts.device != "cuda")


def _packed(facts: AttentionFacts) -> tuple[Backend | None, str]:
    if facts.capped:
        return "RowByRow", "the model caps its scores, which no kernel for rows of varying length computes"
    if facts.device != "cuda":
        return "RowByRow", "a CPU has no kernel for rows of varying length"
    missing = _missing(facts)
    if missing is not None:
        # Row by row, a GPU would start a kernel for each row and keep a copy of each result.
        return None, f"there is no kernel for rows of varying length: {missing}"
    return (
        "Varlen",
        "FlashAttention takes the bounds of the rows, and neither a mask nor a plan for each length",
    )


def _missing(facts: AttentionFacts) -> str | None:
    """Return what torch's kernel for rows of varying length lacks on a GPU; None if nothing."""
    if facts.rocm:
        return "it is made for GPUs of NVIDIA"
    if facts.torch < _OLDEST_TORCH:
        return f"torch must be {_text(_OLDEST_TORCH)} or later, found {_text(facts.torch)}"
    if facts.capability is None or facts.capability < OLDEST_CAPABILITY:
        found = "none" if facts.capability is None else _text(facts.capability)
        return f"the compute capability must be {_text(OLDEST_CAPABILITY)} or higher, found {found}"
    return _unfit_width(facts)


def _unfit_width(facts: AttentionFacts) -> str | None:
    if facts.query_width != facts.value_width:
        return (
            f"queries and values must have the same width, found {facts.query_width} and {facts.value_width}"
        )
    if facts.query_width > WIDEST_HEAD or facts.query_width % 8:
        return f"a head must have a multiple of 8 values, at most {WIDEST_HEAD}, found {facts.query_width}"
    return None


def _padded(facts: AttentionFacts) -> tuple[Backend, str]:
    if facts.capped:
        return "Math", "the model caps its scores, which no fused kernel computes"
    if not facts.fused:
        return "Math", "this architecture computes its scores itself"
    if facts.device != "cuda":
        return "Sdpa", "torch's fused attention keeps no scores"
    unfit = _unfit_width(facts)
    if unfit is not None:
        return "Sdpa", f"torch's memory-efficient kernel, because for FlashAttention {unfit}; {_NO_CUDNN}"
    return "Sdpa", f"FlashAttention keeps no scores; {_NO_CUDNN}"


def _text(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
