from __future__ import annotations

import pytest
from finetune_operator.contract.rung_text import rung_text


@pytest.mark.parametrize(("checkpointing", "said"), [(True, "with"), (False, "without")])
def test_a_rung_is_named_by_what_it_needs_memory_for(*, checkpointing: bool, said: str) -> None:
    rung = {"microBatchSize": 4, "gradientCheckpointing": checkpointing, "activity": "Training"}
    assert rung_text(rung) == f"micro-batches of 4 {said} gradient checkpointing"
