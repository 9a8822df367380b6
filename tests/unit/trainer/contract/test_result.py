from __future__ import annotations

import copy

import pytest
from finetune_trainer.contract.result import (
    DatasetResult,
    PublishedResult,
    Result,
    StatisticsResult,
    TablesResult,
)

from tests.support.repository import ROOT
from tests.support.results import MERGE, PREPARE, TRAIN, fixture

NAMES = sorted(
    path.stem.removeprefix("result.") for path in (ROOT / "contract" / "fixtures").glob("result.*.json")
)


@pytest.mark.parametrize("name", NAMES)
def test_every_result_of_the_contract_is_read_and_written_back_unchanged(name: str) -> None:
    assert Result.model_validate(fixture(name)).document() == fixture(name)


def test_tables_and_report_join_to_the_dataset_of_the_result() -> None:
    document = PREPARE.dataset.document()
    statistics = StatisticsResult.model_validate(document)
    tables = TablesResult.model_validate(document)
    assert DatasetResult.join(tables, statistics).document() == document


def test_results_of_all_stages_survive_the_manifest() -> None:
    published = PublishedResult(prepare=PREPARE, train=TRAIN, merge=MERGE)
    assert PublishedResult.read(copy.deepcopy(published.document())) == published
