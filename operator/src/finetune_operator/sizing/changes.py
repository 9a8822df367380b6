"""The smallest change of a job that makes it fit a GPU.

Changes are tried in the order of the harm that they do to the result: computing activations again and smaller
micro-batches cost time alone, dropout and the adapter's size may cost quality, and a shorter maximum length takes
words out of the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from finetune_operator.api.spec import Training
from finetune_operator.sizing.ladder import Needs, RightSize, Rung, divisors, rungs

SMALLEST_LENGTH = 64
"""Tokens; shorter maximum lengths are not proposed, and longer ones are multiples of it."""


@dataclass(frozen=True)
class Setting:
    """One field of the spec and the value that it should have."""

    path: str
    value: str


@dataclass(frozen=True)
class Change:
    """Settings that make the job fit, and the rung with which it then runs."""

    settings: tuple[Setting, ...]
    rung: Rung
    shortens_data: bool

    def __str__(self) -> str:
        """The settings as one would write them in YAML."""
        return " and ".join(f"{setting.path}: {setting.value}" for setting in self.settings)


@dataclass(frozen=True)
class _Candidate:
    """The job after a change."""

    training: Training
    sequence_length: int
    settings: tuple[Setting, ...] = ()


_Step = Callable[[_Candidate], _Candidate]
_Steps = Sequence[_Step]
_Fits = Callable[[Rung], bool]


def smallest_change(
    training: Training, sequence_length: int, needs: Needs, right_size: RightSize, usable_bytes: int
) -> Change | None:
    """The least harmful change with which the job fits `usable_bytes`, or None where three settings do not suffice.

    Fewer settings are better than more, and a shorter maximum length is the last resort. Of a number the mildest
    value that fits is taken. All this with the estimate's margin; only where nothing has the margin, without.
    """
    start = _Candidate(training, sequence_length)
    others, lengths = tuple(_families(start)), _lengths(start)
    sets: list[tuple[_Steps, ...]] = [chosen for size in (1, 2, 3) for chosen in combinations(others, size)]
    if lengths:
        sets += [(*chosen, lengths) for size in (0, 1, 2) for chosen in combinations(others, size)]
    last = _Last(needs, right_size)
    for fits in (_with_margin(usable_bytes), _without_margin(usable_bytes)):
        for families in sets:
            found = _mildest(start, families, last, fits)
            if found is not None:
                return Change(found.settings, last(found), found.sequence_length < sequence_length)
    return None


class _Last:
    """The rung of a job that needs the least."""

    def __init__(self, needs: Needs, right_size: RightSize) -> None:
        self._needs = needs
        self._right_size = right_size

    def __call__(self, candidate: _Candidate) -> Rung:
        return rungs(candidate.training, candidate.sequence_length, self._needs, self._right_size)[-1]


def _with_margin(usable_bytes: int) -> _Fits:
    return lambda rung: rung.fits_with_margin(usable_bytes)


def _without_margin(usable_bytes: int) -> _Fits:
    return lambda rung: rung.fits(usable_bytes)


def _mildest(start: _Candidate, families: Sequence[_Steps], last: _Last, fits: _Fits) -> _Candidate | None:
    """One step of each family, each as mild as the others' steps allow; the more harmful families first.

    Within a family, steps go from mild to strong and the need falls, so that the first that fits is found by
    halving.
    """
    chosen = [steps[-1] for steps in families]
    if not fits(last(_apply(start, chosen))):
        return None
    for place in reversed(range(len(families))):
        steps = families[place]
        low, high = 0, len(steps) - 1
        while low < high:
            middle = (low + high) // 2
            tried = [*chosen[:place], steps[middle], *chosen[place + 1 :]]
            if fits(last(_apply(start, tried))):
                high = middle
            else:
                low = middle + 1
        chosen[place] = steps[low]
    return _apply(start, chosen)


def _apply(candidate: _Candidate, steps: Sequence[_Step]) -> _Candidate:
    for step in steps:
        candidate = step(candidate)
    return candidate


def _families(start: _Candidate) -> Iterator[_Steps]:
    """Kinds of change in the order of their harm; the steps of one kind go from mild to strong."""
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
    """Every multiple of 64 tokens below the present length, longest first."""
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
