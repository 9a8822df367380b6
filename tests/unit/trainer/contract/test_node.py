from __future__ import annotations

from pathlib import Path

import pytest
from finetune_trainer.contract.node import is_first_node, node_index, pod_address
from finetune_trainer.contract.rank_layout import RankLayout
from finetune_trainer.contract.run_spec import RunSpec, read_run_spec
from finetune_trainer.errors import Reason, StageError

from tests.support.repository import ROOT


def run_on(nodes: int | None) -> RunSpec:
    run = read_run_spec(Path(ROOT / "contract" / "fixtures" / "run.minimal.json"))
    ranks = None if nodes is None else RankLayout(nodes=nodes, per_node=2)
    return run.model_copy(update={"ranks": ranks})


@pytest.mark.parametrize("nodes", [None, 1])
def test_a_pod_without_others_is_the_first(nodes: int | None) -> None:
    assert node_index(run_on(nodes), {"JOB_COMPLETION_INDEX": "7"}) == 0
    assert is_first_node(run_on(nodes), {})


def test_kubernetes_numbers_the_pods() -> None:
    assert [node_index(run_on(3), {"JOB_COMPLETION_INDEX": str(index)}) for index in range(3)] == [0, 1, 2]
    assert is_first_node(run_on(3), {"JOB_COMPLETION_INDEX": "0"})
    assert not is_first_node(run_on(3), {"JOB_COMPLETION_INDEX": "1"})


@pytest.mark.parametrize("text", ["", "3", "-1", "one", "²"])
def test_a_pod_without_a_number_is_refused(text: str) -> None:
    with pytest.raises(StageError, match="from 0 to 2") as caught:
        node_index(run_on(3), {"JOB_COMPLETION_INDEX": text})
    assert caught.value.reason is Reason.INVALID_RUN_SPEC
    assert not is_first_node(run_on(3), {"JOB_COMPLETION_INDEX": text})


def test_a_pod_knows_its_address() -> None:
    assert pod_address({"FINETUNE_POD_ADDRESS": "10.0.0.7"}) == "10.0.0.7"
    with pytest.raises(StageError, match="FINETUNE_POD_ADDRESS"):
        pod_address({})
