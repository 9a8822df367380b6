from __future__ import annotations

import random

import numpy as np
import torch
from finetune_trainer.stages.train.random_states import random_states, restore_random_states


def drawn() -> tuple[float, float, float]:
    return (random.random(), np.random.random(), torch.rand(1).item())  # noqa: NPY002, S311 -- the global generators


def test_all_generators_go_on_from_the_states_that_are_put_back() -> None:
    states = random_states()
    first = drawn()
    assert drawn() != first
    restore_random_states(states)
    assert drawn() == first
    assert "cuda" not in states
