from __future__ import annotations

from finetune_operator.api.spec import FineTuneJobSpec, spec_hash

from tests.support.operator import make_spec


def test_the_spec_hash_names_what_determines_the_model() -> None:
    base = spec_hash(FineTuneJobSpec.parse(make_spec()))
    defaulted = make_spec(
        training={"seed": 42, "learningRate": 0.0002, "lora": {"dropout": 0}},
        dataset={**make_spec()["dataset"], "validation": {"fraction": 0.1}},
    )
    assert spec_hash(FineTuneJobSpec.parse(defaulted)) == base, "defaults written out change nothing"
    widened = make_spec(
        dataset={**make_spec()["dataset"], "format": "Auto", "thresholds": {"minimumRows": 50}}
    )
    assert spec_hash(FineTuneJobSpec.parse(widened)) == base, "so do those of fields that came later"
    held = make_spec(suspend=True, lifecycle={"retries": 7})
    assert spec_hash(FineTuneJobSpec.parse(held)) == base
    assert spec_hash(FineTuneJobSpec.parse(make_spec(training={"seed": 43}))) != base
