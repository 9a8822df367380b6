from __future__ import annotations

import json
from datetime import UTC, datetime

import jsonschema
from finetune_trainer.telemetry.training import TrainingMeasurements

from tests.support.repository import ROOT


def test_only_known_and_finite_numbers_are_in_the_document() -> None:
    measured = TrainingMeasurements(steps=2, seconds=1.5, tokens=7, step_seconds=float("nan"))
    assert measured.document() == {"steps": 2, "seconds": 1.5, "tokens": 7}


def test_a_full_document_follows_the_schema() -> None:
    schema = json.loads((ROOT / "contract/progress.schema.json").read_text())["$defs"]["training"]
    full = TrainingMeasurements(
        1, 2.0, 3, 4.0, 5.0, 6.0, datetime(2026, 1, 31, tzinfo=UTC), 7, 8, 9, 10, (0.1, 0.2), (1, 2), (3, 4)
    )
    document = full.document()
    jsonschema.validate(document, schema)
    assert document.keys() == schema["properties"].keys()
