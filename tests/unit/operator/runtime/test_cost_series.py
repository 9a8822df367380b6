from __future__ import annotations

from typing import Any

import pytest
from finetune_operator.observed.observation import JobRecord
from finetune_operator.runtime.cost_series import FAMILIES, SHOWBACK_FAMILIES
from finetune_operator.runtime.job_series import JobSeries
from prometheus_client.parser import text_string_to_metric_families

from tests.support.operator import make_job

STATUS: dict[str, Any] = {
    "plan": {
        "duration": {"lowSeconds": 10, "expectedSeconds": 20, "highSeconds": 50},
        "cost": {"low": "0.1", "expected": "0.25", "high": "0.5", "currency": "EUR", "reason": "by list"},
    },
    "usage": {
        "gpuSeconds": 30,
        "wastedGpuSeconds": 5,
        "cost": {"amount": "0.3", "wasted": "0.05", "currency": "EUR"},
    },
}
JOB = {"namespace": "team", "name": "demo"}


def series(job: JobRecord, allowed: tuple[str, ...] = ()) -> dict[tuple[str, ...], float]:
    """Every series of showback and cost as its name and its other labels, as Prometheus reads them."""
    text = b"".join(JobSeries(allowed).render([job])).decode()
    return {
        (
            sample.name,
            *(f"{key}={value}" for key, value in sorted(sample.labels.items()) if key not in JOB),
        ): (sample.value)
        for family in text_string_to_metric_families(text)
        if family.name in {*SHOWBACK_FAMILIES, *FAMILIES}
        for sample in family.samples
    }


def test_a_job_has_its_estimate_and_what_it_has_used() -> None:
    found = series(make_job(status=STATUS))
    assert found == {
        ("finetunejob_estimated_gpu_seconds", "bound=low"): 10,
        ("finetunejob_estimated_gpu_seconds", "bound=expected"): 20,
        ("finetunejob_estimated_gpu_seconds", "bound=high"): 50,
        ("finetunejob_estimated_cost", "bound=low", "currency=EUR"): 0.1,
        ("finetunejob_estimated_cost", "bound=expected", "currency=EUR"): 0.25,
        ("finetunejob_estimated_cost", "bound=high", "currency=EUR"): 0.5,
        ("finetunejob_used_gpu_seconds",): 30,
        ("finetunejob_wasted_gpu_seconds",): 5,
        ("finetunejob_cost", "currency=EUR"): 0.3,
        ("finetunejob_wasted_cost", "currency=EUR"): 0.05,
    }


def test_a_job_without_an_estimate_or_a_price_has_no_series_of_it() -> None:
    status = {"plan": {"duration": {"reason": "unknown"}, "cost": {"reason": "no price"}}}
    assert series(make_job(status=status)) == {}
    assert series(make_job()) == {}


def test_only_allowed_labels_become_labels_of_a_series() -> None:
    job = make_job(labels={"team": 'a"b', "costCenter": "42", "argocd.argoproj.io/instance": "app"})
    found = series(job, ("team", "costCenter", "project"))
    assert found == {("finetunejob_labels", "label_cost_center=42", 'label_team=a"b'): 1}
    assert series(job) == {}


@pytest.mark.parametrize(
    "status",
    [{"plan": {"duration": [1]}}, {"usage": {"gpuSeconds": "many"}}, {"usage": {"cost": {"amount": 1}}}],
)
def test_what_another_version_wrote_has_no_series(status: dict[str, Any]) -> None:
    assert series(make_job(status=status)) == {}
