"""The memory of every architecture that passes all stages can be traced, as docs/models.md says."""

from __future__ import annotations

import pytest

from tests.support.model_sweep import STAGES, sized_by, written_rows, written_size

pytestmark = pytest.mark.slow

OFTEN = (
    "gpt2",
    "gpt_oss",
    "qwen3_5_text",
    "gemma3n_text",
    "longcat_flash",
    "gemma3",
    "qwen3_vl",
    "granitemoehybrid",
)
ROWS = written_rows()
SIZED = sorted(kind for kind, row in ROWS.items() if written_size(row))


@pytest.mark.parametrize(
    "kind", [kind if kind in OFTEN else pytest.param(kind, marks=pytest.mark.full) for kind in SIZED]
)
def test_the_memory_of_a_type_is_known_as_documented(kind: str) -> None:
    assert sized_by(kind) == written_size(ROWS[kind])


def test_the_memory_of_every_type_that_passes_all_stages_is_known() -> None:
    passing = [kind for kind, row in ROWS.items() if row.count("| yes ") == len(STAGES)]
    assert [kind for kind in passing if not written_size(ROWS[kind]).endswith("trace")] == []
