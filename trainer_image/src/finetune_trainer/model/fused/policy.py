"""Which fused kernels a run may use, and why the others are left out. The self-test may leave out more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kernel = Literal["RmsNorm", "Rope", "SwiGlu"]
KERNELS: tuple[Kernel, ...] = ("RmsNorm", "Rope", "SwiGlu")
NormForm = Literal["RoundFirst", "RoundLast", "OneMore"]
"""How an RMSNorm scales: after rounding to the type of its input, before it, or before it by one more than its weight."""
OLDEST_CAPABILITY = (8, 0)
"""Earlier GPUs have no arithmetic in bf16."""


@dataclass(frozen=True)
class Family:
    """The formulas of a model family that a kernel computes. `half_rotation` rotates the first half of a head with the other."""

    norm: NormForm
    half_rotation: bool
    gated: bool


_LLAMA = Family("RoundFirst", half_rotation=True, gated=True)
_NO_MLP = Family("RoundFirst", half_rotation=True, gated=False)
_GEMMA = Family("OneMore", half_rotation=True, gated=True)
_OLMO = Family("RoundLast", half_rotation=False, gated=True)
FAMILIES: dict[str, Family] = {
    **dict.fromkeys(
        (
            "llama",
            "mistral",
            "qwen2",
            "qwen3",
            "smollm3",
            "granite",
            "exaone4",
            "hunyuan_v1_dense",
        ),
        _LLAMA,
    ),
    **dict.fromkeys(("seed_oss", "arcee", "apertus"), _NO_MLP),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), _GEMMA),
    **dict.fromkeys(("olmo2", "olmo3", "helium"), _OLMO),
    "phi3": Family("RoundFirst", half_rotation=False, gated=False),
    **dict.fromkeys(("glm", "glm4"), Family("RoundFirst", half_rotation=False, gated=False)),
    "ernie4_5": Family("RoundFirst", half_rotation=False, gated=True),
}
"""By `model_type`. The self-test compares each kernel with the model's own layers, so that a wrong entry costs speed only."""


@dataclass(frozen=True)
class KernelFacts:
    """What the choice depends on.

    `wish` is `training.kernels`. `missing` says why the kernels cannot be loaded, None if they are. `begun` names the
    kernels of the checkpoint from which the run continues, None for a new run.
    """

    wish: str
    device: str
    family: str
    activation: str
    capability: tuple[int, int] | None = None
    missing: str | None = None
    begun: tuple[str, ...] | None = None


@dataclass(frozen=True)
class KernelChoice:
    """The kernels of a run, in the order of `KERNELS`."""

    used: tuple[Kernel, ...]
    reasons: tuple[tuple[Kernel, str], ...] = ()
    """The kernels that are left out, each with its reason."""

    @property
    def reason(self) -> str:
        """All of it in words: why kernels are used, and why others are not."""
        parts: list[str] = []
        if self.used:
            parts.append(f"{', '.join(self.used)}: as the reference within rounding on this device")
        for reason in dict.fromkeys(reason for _, reason in self.reasons):
            names = [name for name, given in self.reasons if given == reason]
            parts.append(reason if len(names) == len(KERNELS) else f"not {', '.join(names)}: {reason}")
        return "; ".join(parts)

    def without(self, failed: dict[Kernel, str]) -> KernelChoice:
        """Return the choice without the kernels that are named in `failed` with a reason."""
        kept = tuple(name for name in self.used if name not in failed)
        reasons = dict(self.reasons) | {name: failed[name] for name in self.used if name in failed}
        return KernelChoice(kept, tuple((name, reasons[name]) for name in KERNELS if name in reasons))


def choose_kernels(facts: KernelFacts) -> KernelChoice:
    """Choose the kernels for `facts`."""
    for_all = _obstacle(facts)
    reasons = {name: for_all or _unfit(name, facts) for name in KERNELS}
    return KernelChoice(
        tuple(name for name, reason in reasons.items() if reason is None),
        tuple((name, reason) for name, reason in reasons.items() if reason is not None),
    )


def _obstacle(facts: KernelFacts) -> str | None:
    """Return why no kernel is used; None if some may be."""
    if facts.wish == "Reference":
        return "training.kernels is Reference"
    if facts.begun == ():
        return "the run began without kernels, and continues as it began"
    return _lacking(facts)


def _lacking(facts: KernelFacts) -> str | None:
    """Return what the device or the model lacks for every kernel; None if nothing."""
    if facts.device != "cuda":
        return "the kernels are for GPUs: on a CPU they would need a C++ compiler, which the image lacks"
    if facts.capability is None or facts.capability < OLDEST_CAPABILITY:
        found = "none" if facts.capability is None else _text(facts.capability)
        return f"the compute capability must be {_text(OLDEST_CAPABILITY)} or higher, found {found}"
    if facts.missing is not None:
        return facts.missing
    if facts.family not in FAMILIES:
        return f"the formulas of the family {facts.family} are not known"
    return None


def _unfit(name: Kernel, facts: KernelFacts) -> str | None:
    family = FAMILIES[facts.family]
    if facts.begun is not None and name not in facts.begun:
        return "the run began without it, and continues as it began"
    if name == "Rope" and not family.half_rotation:
        return f"{facts.family} rotates in another way"
    if name == "SwiGlu" and not family.gated:
        return f"{facts.family} has another MLP"
    if name == "SwiGlu" and facts.activation not in ("silu", "swish"):
        return f"the activation is {facts.activation}"
    return None


def _text(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
