"""How the rows of an optimizer step are put into forward passes: packed, grouped by length, or as they are drawn.

The shuffled order of the data alone decides which rows a step learns. So the passes change the rounding of a step and
nothing else: the number of steps, the rows of each, and the loss of each are the same for all three kinds.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from finetune_trainer.contract.train_result import BatchingKind, BatchingResult

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from finetune_trainer.contract.run_spec import Training

MEMBER = "Batching"
"""The member of `stateful_callbacks` in trainer_state.json that names the kind of a run."""
TOKENS_OF_A_PASS = 512
"""Cost of a pass that does not depend on its tokens, as the time of so many tokens.

It is the operator's figure (`sizing/ladder.py`). More padding than this costs more than another pass.
"""


@dataclass(frozen=True)
class Batching:
    """The kind of a run's passes, and why its rows are not packed; None if they are.

    A pass has at most `budget` tokens, padding included. `micro_batch_size` is the rows of a pass as they are drawn.
    """

    kind: BatchingKind
    budget: int
    micro_batch_size: int
    reason: str | None = None

    def passes(self, lengths: Sequence[int]) -> list[list[int]]:
        """Return the rows of each pass of a step, as positions in `lengths`, the rows' tokens.

        No row may be longer than `budget`.
        """
        if self.kind == "Packed":
            return packs(lengths, self.budget)
        if self.kind == "Grouped":
            return groups(lengths, self.budget)
        size = self.micro_batch_size
        return [list(range(len(lengths)))[first : first + size] for first in range(0, len(lengths), size)]

    def padded(self, lengths: Sequence[int]) -> int:
        """Return the tokens of a pass of rows of these lengths, padding included."""
        return sum(lengths) if self.kind == "Packed" else max(lengths) * len(lengths)


def packs(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Put rows into packs of at most `budget` tokens: the longest row first, each where it leaves the least room.

    If no row is longer than a `budget / n`, there are no more packs than groups of n rows. Otherwise each full pack would
    have n rows, and none would be left. The order of equally long rows is kept, so the result is the same every time.
    """
    found: list[list[int]] = []
    # Room and number of each pack, the smallest room first.
    rooms: list[tuple[int, int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        place = bisect_left(rooms, (lengths[row], -1))
        if place == len(rooms):
            found.append([row])
            insort(rooms, (budget - lengths[row], len(found) - 1))
            continue
        room, pack = rooms.pop(place)
        found[pack].append(row)
        insort(rooms, (room - lengths[row], pack))
    return found


def groups(lengths: Sequence[int], budget: int, cost: int = TOKENS_OF_A_PASS) -> list[list[int]]:
    """Group rows of similar length, the longest first; padded, a group has at most `budget` tokens.

    A group ends before its padding exceeds the `cost` of another pass in tokens.
    """
    found: list[list[int]] = []
    padding = 0
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        if found:
            longest = lengths[found[-1][0]]
            padding += longest - lengths[row]
            if longest * (len(found[-1]) + 1) <= budget and padding <= cost:
                found[-1].append(row)
                continue
        found.append([row])
        padding = 0
    return found


def choose(training: Training, longest: int, begun: BatchingKind | None, obstacle: str | None) -> Batching:
    """Choose the passes of a run whose longest row has `longest` tokens.

    `begun` is the kind of the checkpoint that the run continues, None without one. `obstacle` says why the model's rows
    cannot share a pass, None if they can.
    """

    def batching(kind: BatchingKind, reason: str | None = None) -> Batching:
        size = training.micro_batch_size
        return Batching(kind, size * longest, size, reason)

    if begun == "AsDrawn":
        return batching(
            "AsDrawn", "the run began with a trainer that did not pack, and continues as it began"
        )
    if training.packing == "Never":
        return batching("Grouped", "training.packing is Never")
    if training.neftune_noise_alpha > 0:
        return batching("Grouped", "the noise of training.neftuneNoiseAlpha depends on the length of a pass")
    if obstacle is not None:
        return batching("Grouped", obstacle)
    if begun == "Grouped":
        return batching("Grouped", "the run began with grouped rows, and continues as it began")
    return batching("Packed")


def begun_kind(state: Any) -> BatchingKind:
    """Return the kind that a checkpoint's TrainerState names. Trainers before contract 1.6 drew rows and named none."""
    found = (state.stateful_callbacks.get(MEMBER) or {}).get("kind")
    return found if found in ("Packed", "Grouped") else "AsDrawn"


class BatchingCallback(TrainerCallback):
    """Notes the kind before the first step, so that every checkpoint of the run names it."""

    def __init__(self, batching: Batching) -> None:
        self._batching = batching

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 -- the base class's signature
        """Note it in the state, which is that of the checkpoint if the run continues from one."""
        state.stateful_callbacks[MEMBER] = {"kind": self._batching.kind}


def batching_result(batching: Batching, history: Sequence[Mapping[str, Any]]) -> BatchingResult:
    """Return the passes of a run for its result; `history` has the tokens of each step, but for steps of old trainers."""
    steps = [entry for entry in history if "computedTokens" in entry]
    computed = sum(entry["computedTokens"] for entry in steps)
    return BatchingResult(
        kind=batching.kind,
        budget_tokens=batching.budget,
        **({} if batching.reason is None else {"reason": batching.reason}),
        **({"real_tokens": round(sum(entry["tokens"] for entry in steps) / computed, 4)} if computed else {}),
    )
