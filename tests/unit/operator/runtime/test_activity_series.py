from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_operator.api.stages import Stage
from finetune_operator.observed.activity import JobActivity, remember
from finetune_operator.runtime.activity_series import FAMILIES, RANKS, ActivitySeries
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tests.support.operator import NOW, make_progress

LABELS = {"name": "demo", "namespace": "team"}
REPORT: dict[str, Any] = {
    "steps": 5,
    "seconds": 4.0,
    "tokens": 5006,
    "stepSeconds": 0.5,
    "evaluationLoss": 1.25,
    "routerAuxLoss": 2.5,
    "checkpointTime": "2026-11-24T09:00:01Z",
    "allocatedBytes": 10,
    "peakAllocatedBytes": 20,
    "reservedBytes": 30,
    "peakReservedBytes": 40,
}


def activity(**changes: Any) -> JobActivity:
    members: dict[str, Any] = {"learningRate": 1e-4, "gradientNorm": 2.0, "tokensPerSecond": 3.0}
    progress = make_progress(Stage.TRAIN, training=REPORT, **members)
    known = JobActivity(
        "team",
        "demo",
        training=remember(None, progress),
        heartbeat=NOW,
        estimated_completion=NOW,
        trains=True,
        gpu_pod_ended=NOW,
    )
    return replace(known, **changes)


def values(text: str) -> dict[str, float]:
    """The values of the series by name, with the kind of memory behind it."""
    found = {}
    for family in parse_text(text):
        for sample in family.samples:
            kind = sample.labels.pop("kind", "")
            assert sample.labels == LABELS
            found[sample.name + kind] = sample.value
    return found


def rendered(*activities: JobActivity) -> str:
    return b"".join(ActivitySeries().render(activities)).decode()


def test_every_family_shows_what_the_trainer_has_reported() -> None:
    found = values(rendered(activity()))
    other = {"finetunejob_gpu_memory_bytes", *RANKS}
    assert {name.removesuffix("Peak") for name in found} >= FAMILIES.keys() - other
    assert found["finetunejob_step_loss"] == 1.5
    assert found["finetunejob_trained_tokens"] == 5006
    assert found["finetunejob_not_training_ratio"] == pytest.approx(0.2)
    assert found["finetunejob_gpu_memory_bytesReservedPeak"] == 40
    assert found["finetunejob_heartbeat_timestamp_seconds"] == NOW.timestamp()


def test_only_several_ranks_have_series_and_they_outlive_the_pod() -> None:
    assert not any(name.startswith("finetunejob_rank") for name in values(rendered(activity())))
    ranks = {"rankSeconds": [0.5, 0.25], "rankHostBytes": [7, 8]}
    reported = remember(None, make_progress(Stage.TRAIN, training={**REPORT, **ranks}))
    # No pod answers any more.
    ended = activity(training=reported, heartbeat=None, trains=False)
    found = {
        (sample.name, sample.labels["rank"]): sample.value
        for family in parse_text(rendered(ended))
        for sample in family.samples
        if "rank" in sample.labels
    }
    assert found == {
        ("finetunejob_rank_step_duration_seconds", "0"): 0.5,
        ("finetunejob_rank_step_duration_seconds", "1"): 0.25,
        ("finetunejob_rank_host_memory_peak_bytes", "0"): 7,
        ("finetunejob_rank_host_memory_peak_bytes", "1"): 8,
    }


def test_only_a_training_job_can_have_an_old_checkpoint() -> None:
    name = "finetunejob_last_checkpoint_timestamp_seconds"
    assert name in values(rendered(activity()))
    assert name not in values(rendered(activity(trains=False)))


def test_lines_follow_the_activity() -> None:
    series = ActivitySeries()
    assert b" 1.5\n" in b"".join(series.render([activity()]))
    changed = activity(training=remember(None, make_progress(Stage.TRAIN, loss=7.0)))
    text = b"".join(series.render([changed])).decode()
    assert values(text)["finetunejob_step_loss"] == 7
    assert values(b"".join(series.render([])).decode()) == {}


def test_both_formats_can_be_read() -> None:
    text = rendered(activity(), activity(name="other"))
    families = list(parse_openmetrics(text + "# EOF\n"))  # type: ignore[no-untyped-call]  # not annotated by the library
    assert len(families) == len(FAMILIES)
