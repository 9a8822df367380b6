from __future__ import annotations

from typing import Any

import pytest
from finetune_operator.api.spec import FineTuneJobSpec, spec_hash
from finetune_operator.api.stages import WORK_STAGES
from finetune_operator.errors import InvalidSpecError

from tests.support.crd_schema import root_schema, walk
from tests.support.operator import make_spec


def test_the_spec_hash_covers_the_fields_that_determine_the_model() -> None:
    base = spec_hash(FineTuneJobSpec.parse(make_spec()))
    defaulted = make_spec(
        training={"seed": 42, "lora": {"dropout": 0}, "weightDecay": 0, "checkpoint": {"keep": "Last"}},
        dataset={**make_spec()["dataset"], "validation": {"fraction": 0.1}},
    )
    assert spec_hash(FineTuneJobSpec.parse(defaulted)) == base, "defaults written out change nothing"
    widened = make_spec(
        dataset={**make_spec()["dataset"], "format": "Auto", "thresholds": {"minimumRows": 50}}
    )
    assert spec_hash(FineTuneJobSpec.parse(widened)) == base, "the same is true for fields of later versions"
    held = make_spec(suspend=True, lifecycle={"retries": 7}, queueName="gpus", cpuQueueName="cpus")
    assert spec_hash(FineTuneJobSpec.parse(held)) == base
    assert spec_hash(FineTuneJobSpec.parse(make_spec(training={"seed": 43}))) != base


@pytest.mark.parametrize("field", ["queueName", "cpuQueueName"])
def test_a_queue_is_a_label_of_dns(field: str) -> None:
    FineTuneJobSpec.parse(make_spec(**{field: "a-1" * 21}))
    for wrong in ("", "a.b", "A", "-a", "a-", "a" * 64):
        with pytest.raises(InvalidSpecError, match=rf"spec\.{field}"):
            FineTuneJobSpec.parse(make_spec(**{field: wrong}))


def test_only_train_waits_in_the_queue_of_gpus() -> None:
    spec = FineTuneJobSpec.parse(make_spec(queueName="gpus"))
    assert [spec.queue_of(stage) for stage in WORK_STAGES] == [None, "gpus", None]
    spec = FineTuneJobSpec.parse(make_spec(cpuQueueName="cpus"))
    assert [spec.queue_of(stage) for stage in WORK_STAGES] == ["cpus", None, "cpus"]


def test_the_hash_of_a_job_with_the_old_default_rate_stays() -> None:
    """The API server stored 0.0002 in objects that gave no rate, and their workspaces are named by this hash."""

    def hash_of(**training: Any) -> str:
        return spec_hash(FineTuneJobSpec.parse(make_spec(training=training)))

    assert hash_of(learningRate=0.0002) == (
        "sha256:9cf066620cc3913357718a64d5a8f8bd8f2fe4016a0cdeeecfa341fec0a4ad8c"
    )
    assert hash_of(learningRate=0.0002, seed=7) == (
        "sha256:8bde110fe1fb58fe3ce721eb97c27da2e2b9f8eb18ccfe56d9467e1bbab131b0"
    )
    assert hash_of(learningRate=0.001) == (
        "sha256:e536fd78cc1215adbfb30eb410db95c81093b6e850d54c2fb350fa21331dc207"
    )
    assert len({hash_of(), hash_of(learningRate=0.0002), hash_of(learningRate=0.001)}) == 3


def test_settings_that_change_the_adapter_change_the_hash() -> None:
    base = spec_hash(FineTuneJobSpec.parse(make_spec()))
    changes: tuple[dict[str, Any], ...] = (
        {"weightDecay": 0.1},
        {"maximumGradientNorm": 0.3},
        {"neftuneNoiseAlpha": 5},
        {"routerAuxLossCoefficient": 0.01},
        {"packing": "Never"},
        {"kernels": "Reference"},
        {"earlyStopping": {}},
        {"checkpoint": {"keep": "Best"}},
    )
    for training in changes:
        assert spec_hash(FineTuneJobSpec.parse(make_spec(training=training))) != base


@pytest.mark.parametrize("field", ["kernels", "packing"])
def test_a_choice_that_is_meant_anyway_may_be_given(field: str) -> None:
    """The CRD has no default for it, so that operators that do not know it find nothing new in stored jobs."""
    given = FineTuneJobSpec.parse(make_spec(training={field: "Auto"}))
    omitted = FineTuneJobSpec.parse(make_spec())
    assert given == omitted
    assert spec_hash(given) == spec_hash(omitted)
    assert "default" not in dict(walk(root_schema(), "job"))[f"job.spec.training.{field}"]


def test_the_gate_is_no_part_of_the_model_but_what_is_published_is() -> None:
    """A withheld model is published with another gate, without a second training."""

    def hash_of(**changes: Any) -> str:
        return spec_hash(FineTuneJobSpec.parse(make_spec(**changes)))

    output = make_spec()["output"]
    plain = hash_of()
    for gate in ("Report", "WithholdIfWorse", "WithholdUnlessImproved"):
        assert hash_of(evaluation={"gate": gate}) == plain
        assert hash_of(evaluation={"gate": gate, "maximumRows": 50}) == hash_of(
            evaluation={"maximumRows": 50}
        )
    assert hash_of(evaluation={"maximumRows": 50}) != plain
    assert hash_of(output={**output, "mergeOnto": "TrainedWeights"}) == plain
    assert hash_of(output={**output, "mergeOnto": "OriginalWeights"}) != plain
    assert hash_of(output={**output, "artifacts": ["Adapter", "Merged", "BaseAsTrained"]}) != plain


@pytest.mark.parametrize("size", ["1e9", "1.5Gi", "+20G", ".5Ti", 10**9])
def test_every_lawful_quantity_is_a_size(size: str | int) -> None:
    assert FineTuneJobSpec.parse(make_spec(workspace={"size": size})).workspace.size == str(size)


@pytest.mark.parametrize("size", ["lots", "-1Gi", "1GiB", "1" * 33])
def test_other_sizes_are_rejected_with_their_field(size: str) -> None:
    with pytest.raises(InvalidSpecError, match=r"spec\.workspace\.size: .*, found"):
        FineTuneJobSpec.parse(make_spec(workspace={"size": size}))
