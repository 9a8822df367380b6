"""The probe: its batch is the largest of the plan, and it leaves no trace."""

from __future__ import annotations

import itertools
import random
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from finetune_trainer.data.dataset.tables import ExampleTable, TableWriter
from finetune_trainer.data.masking.example import IGNORED, Example
from finetune_trainer.stages.train.batching import choose
from finetune_trainer.stages.train.dataset import open_table, training_dataset
from finetune_trainer.stages.train.probe import longest_batch, needs_probe, probe, probe_config, unchanged
from finetune_trainer.stages.train.progress_callback import ProgressCallback
from finetune_trainer.stages.train.settings import sft_config
from finetune_trainer.stages.train.stage import _build_trainer, _load
from finetune_trainer.stages.train.stop_request import StopRequest
from finetune_trainer.workspace.layout import WorkspaceLayout
from peft import get_peft_model_state_dict

from tests.support.small_gpu import Watch
from tests.support.workspaces import run_spec

if TYPE_CHECKING:
    from pathlib import Path


def _table(path: Path, shapes: list[tuple[int, int]]) -> ExampleTable:
    """Write examples of (tokens, learned tokens); the ids of row N are all N."""
    writer = TableWriter(path)
    for row, (tokens, learned) in enumerate(shapes, start=1):
        ids = [row] * tokens
        writer.add(Example(ids, [IGNORED] * (tokens - learned) + ids[tokens - learned :], row))
    writer.finish()
    return ExampleTable(path)


def _numpy_key() -> tuple[list[int], int]:
    state: Any = np.random.get_state(legacy=False)  # noqa: NPY002 -- libraries draw from the global generator
    return state["state"]["key"].tolist(), state["state"]["pos"]


def test_the_batch_has_the_longest_rows_and_the_most_learned_tokens(tmp_path: Path) -> None:
    """No micro-batch of these rows has more tokens or more learned tokens than those of the probe."""
    table = _table(tmp_path / "t.arrow", [(5, 1), (9, 2), (6, 5), (8, 1), (7, 6), (4, 3)])
    batch = longest_batch(table, 2, 4)
    assert [len(row) for row in batch["input_ids"]] == [9, 9, 9, 9]
    assert [row[0] for row in batch["input_ids"]] == [2, 4, 5, 3]
    learned = [sum(label != IGNORED for label in row) for row in batch["labels"]]
    assert learned == [6, 5, 6, 5]


def test_a_batch_never_has_more_rows_than_the_data(tmp_path: Path) -> None:
    batch = longest_batch(_table(tmp_path / "t.arrow", [(5, 1), (2, 1)]), 4, 8)
    assert len(batch) == 2


def test_a_row_whose_tokens_are_all_learned_keeps_one_to_predict_from(tmp_path: Path) -> None:
    batch = longest_batch(_table(tmp_path / "t.arrow", [(5, 5)]), 1, 1)
    assert batch["labels"] == [[IGNORED, 1, 1, 1, 1]]


def test_a_probe_is_left_out_where_it_tells_nothing() -> None:
    """After the last step, and after a checkpoint of a rung that passed its probe on this kind of device."""
    found = {
        (resumes, finished, passed)
        for resumes, finished, passed in itertools.product((True, False), repeat=3)
        if needs_probe(resumes=resumes, finished=finished, passed=passed)
    }
    assert found == {(False, False, False), (False, False, True), (True, False, False)}


def test_random_states_values_and_gradients_are_put_back_bit_for_bit() -> None:
    model = torch.nn.Linear(3, 3, dtype=torch.float64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    states = random.getstate(), _numpy_key(), torch.get_rng_state()
    with unchanged(model):
        model(torch.rand(2, 3, dtype=torch.float64)).sum().backward()
        model.weight.data = model.weight.data.float().add_(1)
        random.random()  # noqa: S311 -- a draw from the global generator
        np.random.rand()  # noqa: NPY002 -- a draw from the global generator
        model.eval()
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float64
        assert torch.equal(value, before[name])
    assert random.getstate() == states[0]
    assert _numpy_key() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


@pytest.mark.slow
def test_a_run_with_the_probe_equals_a_run_without_it(workspace: Path, tmp_path: Path) -> None:
    """With dropout, over two epochs: the same adapter, optimizer state and random state, bit for bit."""
    lora = {"rank": 4, "alpha": 8, "dropout": 0.1, "targetModules": "AllLinear", "variant": "Standard"}
    run = run_spec(workspace, tmp_path / "output", maximumSteps=8, lora=lora, gradientCheckpointing=True)
    layout = WorkspaceLayout(workspace)
    table = open_table(layout.training_table)
    batching = choose(run.training, table.longest(), None, None)
    found = []
    for probes in (True, False):
        loaded = _load(run, layout)
        if probes:
            watch = Watch()
            result = probe(run, layout, loaded.adapted, loaded.tokenizer, table, batching, watch)
            assert result.document() == {"sequenceLength": table.longest()}
            assert watch.seen == [("ProbingMemory", step) for step in (0, 1, 2)]
            assert not layout.checkpoints.exists() or not list(layout.checkpoints.iterdir())
        callback = ProgressCallback(Watch(), StopRequest())
        trainer = _build_trainer(run, layout, loaded, training_dataset(table), batching, 8, callback)
        trainer.train()
        values = get_peft_model_state_dict(trainer.adapted)
        assert trainer.optimizer is not None
        found.append(
            (values, trainer.optimizer.state_dict()["state"], callback.losses, torch.get_rng_state())
        )
    (with_probe, states, losses, random_state), (without, other_states, other_losses, other_random) = found
    assert losses == other_losses
    assert torch.equal(random_state, other_random)
    for name, value in without.items():
        assert torch.equal(value, with_probe[name]), name
    for number, state in other_states.items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(states[number][name])), name


def test_the_probe_differs_from_the_run_only_in_what_it_leaves_behind(tmp_path: Path) -> None:
    """The rows keep their order, which makes the micro-batches; and bitsandbytes would never free paged states."""
    run = run_spec(tmp_path, tmp_path, microBatchSize=2).model_copy(update={"device": "cuda"})
    layout = WorkspaceLayout(tmp_path)
    settings, probed = sft_config(run, layout.checkpoints, 2), probe_config(run, layout)
    names = {field.name for field in fields(settings)}
    changed = {name for name in names if getattr(settings, name) != getattr(probed, name)}
    assert changed == {"train_sampling_strategy", "save_strategy", "logging_strategy", "optim"}
    assert (settings.optim, probed.optim) == ("paged_adamw_8bit", "adamw_8bit")
    assert (probed.train_sampling_strategy, probed.save_strategy) == ("sequential", "no")
