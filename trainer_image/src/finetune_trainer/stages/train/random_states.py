"""The states of all random generators that a training draws from."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class StepEnd:
    """A finished optimizer step, and the generators' states at its end."""

    step: int
    randomness: dict[str, Any]


def random_states() -> dict[str, Any]:
    """Return the states as transformers' Trainer saves them. `cuda` is that of the current device, if one is in use."""
    states = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002 -- libraries draw from numpy's global generator
        "cpu": torch.random.get_rng_state(),
    }
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.random.get_rng_state()
    return states


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Put back what `random_states` returned."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])  # noqa: NPY002 -- libraries draw from numpy's global generator
    torch.random.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.random.set_rng_state(states["cuda"])
