"""The smallest change of a job that makes it fit a GPU.

Changes are tried from the least to the most harmful. Recomputing activations and smaller micro-batches cost only time.
Dropout and the adapter's size may cost quality. A shorter maximum length removes text from the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from finetune_operator.api.plan import ONE_GPU, Layout
from finetune_operator.api.spec import Training
from finetune_operator.sizing.ladder import ABILITIES, Abilities, Estimator, RightSize, Rung, divisors, rungs

SMALLEST_LENGTH = 64
"""Tokens. Proposed maximum lengths are multiples of this number."""


@dataclass(frozen=True)
class Setting:
    """One field of the spec with its proposed value."""

    path: str
    value: str


@dataclass(frozen=True)
class Change:
    """Settings that make the job fit, and the rung that the changed job uses."""

    settings: tuple[Setting, ...]
    rung: Rung
    shortens_data: bool

    def __str__(self) -> str:
        """Return the settings as YAML paths and values."""
        return " and ".join(f"{setting.path}: {setting.value}" for setting in self.settings)


@dataclass(frozen=True)
class _Candidate:
    """The job after a change."""

    training: Training
    sequence_length: int
    settings: tuple[Setting, ...] = ()


_Step = Callable[[_Candidate], _Candidate]
_Steps = Sequence[_Step]
_FrugalRung = Callable[[_Candidate], Rung]
_Fits = Callable[[Rung], bool]


def smallest_change(
    training: Training,
    sequence_length: int,
    estimator: Estimator,
    right_size: RightSize,
    usable_bytes: int,
    abilities: Abilities = ABILITIES,
    layout: Layout = ONE_GPU,
) -> Change | None:
    """Return the least harmful change that makes the job fit `usable_bytes`, or None if three settings are not enough.

    Fewer settings are better than more, and a shorter maximum length is the last resort. A number gets the mildest
    value that fits. The estimate's margin is dropped only if no change fits with it.
    """
    start = _Candidate(training, sequence_length)
    others, lengths = tuple(_families(start)), _lengths(start)
    sets: list[tuple[_Steps, ...]] = [chosen for size in (1, 2, 3) for chosen in combinations(others, size)]
    if lengths:
        sets += [(*chosen, lengths) for size in (0, 1, 2) for chosen in combinations(others, size)]
    frugal = _frugal_rung(estimator, right_size, abilities, layout)
    for fits in (_with_margin(usable_bytes), _without_margin(usable_bytes)):
        for families in sets:
            found = _mildest(start, families, frugal, fits)
            if found is not None:
                return Change(found.settings, frugal(found), found.sequence_length < sequence_length)
    return None


def _frugal_rung(
    estimator: Estimator, right_size: RightSize, abilities: Abilities, layout: Layout
) -> _FrugalRung:
    """Return the function that finds a candidate's rung with the smallest memory."""

    def frugal(candidate: _Candidate) -> Rung:
        training, length = candidate.training, candidate.sequence_length
        return rungs(training, length, estimator, right_size, abilities.most_frugal, layout)[-1]

    return frugal


def _with_margin(usable_bytes: int) -> _Fits:
    return lambda rung: rung.fits_with_margin(usable_bytes)


def _without_margin(usable_bytes: int) -> _Fits:
    return lambda rung: rung.fits(usable_bytes)


def _mildest(
    start: _Candidate, families: Sequence[_Steps], frugal: _FrugalRung, fits: _Fits
) -> _Candidate | None:
    """Return one step of each family, each as mild as the other steps allow, the most harmful family first.

    Within a family, steps go from mild to strong while the memory falls, so bisection finds the first that fits.
    """
    chosen = [steps[-1] for steps in families]
    if not fits(frugal(_apply(start, chosen))):
        return None
    for index in reversed(range(len(families))):
        steps = families[index]
        low, high = 0, len(steps) - 1
        while low < high:
            middle = (low + high) // 2
            tried = [*chosen[:index], steps[middle], *chosen[index + 1 :]]
            if fits(frugal(_apply(start, tried))):
                high = middle
            else:
                low = middle + 1
        chosen[index] = steps[low]
    return _apply(start, chosen)


def _apply(candidate: _Candidate, steps: Sequence[_Step]) -> _Candidate:
    for step in steps:
        candidate = step(candidate)
    return candidate


def _families(start: _Candidate) -> Iterator[_Steps]:
    """Yield the kinds of change, least harmful first; the steps of one kind go from mild to strong."""
    training, lora = start.training, start.training.lora
    if training.gradient_checkpointing == "Forbid":
        yield (_training_step("gradientCheckpointing", "gradient_checkpointing", "Auto"),)
    if training.micro_batch_size is not None and training.micro_batch_size > 1:
        yield [
            _training_step("microBatchSize", "micro_batch_size", size)
            for size in divisors(training.effective_batch_size)
            if size < training.micro_batch_size
        ]
    if lora.dropout > 0:
        yield (_lora_step("dropout", "dropout", 0),)
    if lora.variant == "DoRA":
        yield (_lora_step("variant", "variant", "Standard"),)
    if lora.rank > 1:
        powers = [1 << exponent for exponent in reversed(range(lora.rank.bit_length()))]
        yield [_lora_step("rank", "rank", rank) for rank in powers if rank < lora.rank]
    if lora.target_modules == "AllLinear":
        yield (_lora_step("targetModules", "target_modules", "AttentionOnly"),)


def _lengths(start: _Candidate) -> _Steps:
    """Return a step for every multiple of 64 tokens below the current length, longest first."""
    return [
        _length_step(blocks * SMALLEST_LENGTH)
        for blocks in range((start.sequence_length - 1) // SMALLEST_LENGTH, 0, -1)
    ]


def _length_step(length: int) -> _Step:
    return lambda candidate: _Candidate(
        candidate.training.model_copy(update={"maximum_length": length}),
        length,
        (*candidate.settings, Setting("training.maximumLength", str(length))),
    )


def _training_step(name: str, field: str, value: str | int) -> _Step:
    return lambda candidate: _Candidate(
        candidate.training.model_copy(update={field: value}),
        candidate.sequence_length,
        (*candidate.settings, Setting(f"training.{name}", str(value))),
    )


def _lora_step(name: str, field: str, value: str | int) -> _Step:
    return lambda candidate: _Candidate(
        candidate.training.model_copy(
            update={"lora": candidate.training.lora.model_copy(update={field: value})}
        ),
        candidate.sequence_length,
        (*candidate.settings, Setting(f"training.lora.{name}", str(value))),
    )
