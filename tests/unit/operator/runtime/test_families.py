from __future__ import annotations

from finetune_operator.runtime.families import head, identity, number
from prometheus_client.parser import text_string_to_metric_families


def test_any_name_and_number_can_be_read_back() -> None:
    name = 'a"b\\c\nd'
    for value in (1e300, float("inf"), float("-inf"), 5):
        text = head("metric", "Help.").decode() + f"metric{{{identity(name, 'team')}}} {number(value)}\n"
        (family,) = text_string_to_metric_families(text)
        (sample,) = family.samples
        assert sample.labels == {"name": name, "namespace": "team"}
        assert sample.value == value
    assert number(float("nan")) == "NaN"
