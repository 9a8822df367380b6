from __future__ import annotations

import pytest
from finetune_operator.api.pods import PodTemplate, reserved_keys
from finetune_operator.api.showback import (
    FOREIGN_LABELS,
    FOREIGN_PREFIXES,
    ShowbackKey,
    check_distinct,
    metric_label,
    showback_labels,
)
from pydantic import TypeAdapter, ValidationError

KEY = TypeAdapter(ShowbackKey)


def test_only_allowed_labels_that_the_job_has_are_carried() -> None:
    labels = {"team": "vision", "argocd.argoproj.io/instance": "app", "costCenter": "42"}
    assert showback_labels(labels, ["team", "project"]) == {"team": "vision"}
    assert showback_labels(labels, []) == {}


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("team", "label_team"),
        ("costCenter", "label_cost_center"),
        ("example.com/cost-center", "label_example_com_cost_center"),
        ("GPUPool", "label_gpupool"),
    ],
)
def test_labels_of_metrics_are_named_as_kube_state_metrics_names_them(key: str, name: str) -> None:
    assert metric_label(key) == name


@pytest.mark.parametrize(
    "key",
    [
        *(f"{prefix}x" for prefix in FOREIGN_PREFIXES),
        *sorted(FOREIGN_LABELS),
        "a b",
        "",
        "/x",
        "Example.com/x",
    ],
)
def test_keys_of_other_tools_and_malformed_keys_are_refused(key: str) -> None:
    with pytest.raises(ValidationError):
        KEY.validate_python(key)


def test_no_allowed_key_is_one_that_pods_reserve() -> None:
    """What podTemplate may not set, showback may not set either."""
    for key in (*FOREIGN_LABELS, *(f"{prefix}x" for prefix in FOREIGN_PREFIXES), "team"):
        template = PodTemplate(labels={key: "x"}, object_labels={key: "x"})
        if next(reserved_keys(template), None) is not None:
            with pytest.raises(ValidationError):
                KEY.validate_python(key)


def test_two_keys_with_one_label_of_a_metric_are_refused() -> None:
    check_distinct(["team", "costCenter"])
    for keys in (["costCenter", "cost-center"], ["team", "team"]):
        with pytest.raises(ValueError, match="different labels"):
            check_distinct(keys)
