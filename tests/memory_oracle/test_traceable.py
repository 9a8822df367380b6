"""The memory of every architecture that passes all stages can be traced, so the operator can size it."""

from __future__ import annotations

import pytest
from finetune_operator.sizing.memory.training_plan import TrainingPlan
from finetune_trainer.contract.memory_trace import TraceRequest
from finetune_trainer.model.small_config import small_document
from finetune_trainer.trace import command

from tests.support.memory_oracle.fake_run import plan_spec
from tests.support.model_sweep import STAGES, config_of, written_rows

pytestmark = pytest.mark.slow

OFTEN = ("gpt2", "gpt_oss", "qwen3_5_text", "gemma3n_text", "longcat_flash", "gemma3", "qwen3_vl")
PASSING = sorted(kind for kind, row in written_rows().items() if row.count("| yes ") == len(STAGES))


@pytest.mark.parametrize(
    "kind", [kind if kind in OFTEN else pytest.param(kind, marks=pytest.mark.full) for kind in PASSING]
)
def test_the_memory_of_a_small_model_can_be_traced(kind: str) -> None:
    config = config_of(kind).to_dict()
    document = {name: value for name, value in small_document(config).items() if value is not None}
    training = plan_spec(TrainingPlan(64, 1, gradient_accumulation=1)).training
    answer = command.traced(
        TraceRequest(training=training, config={**document, "model_type": kind}, length=64)
    )
    assert answer.trace is not None, answer.problem
