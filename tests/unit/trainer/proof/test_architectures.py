"""Every language model of transformers goes through the trainer as docs/models.md says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.support.model_sweep import STAGES, model_types, table_row, travel, written_rows, written_size

if TYPE_CHECKING:
    from pathlib import Path

OFTEN = (
    "llama", "mistral", "qwen2", "gemma2", "gpt2", "phi3", "qwen3_5_text", "qwen3_moe", "qwen3_next", "gemma3n_text",
    "gemma4_text", "ministral3", "gpt_oss", "llama4_text", "deepseek_v3", "glm4_moe", "granitemoehybrid", "falcon_h1",
    "olmo3", "smollm3", "phimoe", "ernie4_5_moe", "hunyuan_v1_dense", "seed_oss", "mixtral",
)  # fmt: skip
FEWEST = 120
TYPED = frozenset({"UnsupportedModel", "InvalidModel", "ModelUnprovable", "NotBuilt"})


def check(kind: str, folder: Path) -> None:
    journey = travel(kind, folder)
    assert journey.complete or journey.reason in TYPED, journey
    row = written_rows()[kind]
    journey.size = written_size(row)
    assert table_row(journey) == row, f"{journey}: write the page with tests.support.model_sweep"


@pytest.mark.slow
@pytest.mark.parametrize("kind", OFTEN)
def test_a_common_architecture_is_trained_and_merged_as_documented(kind: str, tmp_path: Path) -> None:
    check(kind, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("kind", [kind for kind in written_rows() if kind not in OFTEN])
def test_an_architecture_is_trained_and_merged_or_refused_with_a_reason(kind: str, tmp_path: Path) -> None:
    check(kind, tmp_path)


def test_common_architectures_pass_every_stage() -> None:
    rows = written_rows()
    assert [kind for kind in OFTEN if rows[kind].count("| yes ") < len(STAGES)] == []


def test_the_page_says_how_the_memory_of_each_prepared_type_is_known() -> None:
    for kind, row in written_rows().items():
        prepared = row.split("|")[3].strip() == "yes"
        size = written_size(row)
        known = size in {"formula", "trace", "formula, trace"} or size.startswith("no: ")
        assert known if prepared else not size, kind


def test_the_page_has_every_type_and_a_reason_for_each_that_is_refused() -> None:
    """Models that also see or hear have a row once they were run."""
    rows = written_rows()
    assert set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) <= rows.keys() <= set(model_types())
    refused = {kind: row for kind, row in rows.items() if row.count("| yes ") < len(STAGES)}
    assert [kind for kind, row in refused.items() if not any(f"`{reason}`" in row for reason in TYPED)] == []
    assert len(rows) - len(refused) >= FEWEST
