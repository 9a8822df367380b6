"""The pictures of the dashboards, drawn from series as Prometheus returns them."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest

from scripts.docs.dashboard_pictures import picture, series_of, shown
from tests.support.dashboards import dashboards, panels


def result(value: float = 1.0, **labels: str) -> dict[str, Any]:
    """A series of 100 points, five seconds apart."""
    return {"metric": labels, "values": [[1000 + 5 * number, str(value * number)] for number in range(100)]}


def data_of(dashboard: dict[str, Any], results: list[dict[str, Any]]) -> dict[tuple[str, str], Any]:
    return {
        (dashboard["uid"], panel["title"]): [results for _ in panel["targets"]] for panel in panels(dashboard)
    }


@pytest.mark.parametrize("dashboard", dashboards(), ids=lambda dashboard: dashboard["uid"])
def test_every_panel_is_drawn_with_and_without_data(dashboard: dict[str, Any]) -> None:
    hostile = result(
        2.5, phase="<script>", reason="a&b", stage="Train", name="n", kind="k", product="p", state="s"
    )
    for results in ([hostile, result(0)], []):
        text = picture(dashboard, data_of(dashboard, results))
        drawn = ET.fromstring(text)  # noqa: S314 -- see above
        assert "<script>" not in text
        titles = {each.text for each in drawn.iter("{http://www.w3.org/2000/svg}text")}
        assert {panel["title"] for panel in panels(dashboard)} <= titles
        assert ("polyline" in text) is bool(results)
        assert len(text) < 100_000


def test_a_legend_has_the_labels_of_its_series_and_no_value_that_is_no_number() -> None:
    panel = {"targets": [{"legendFormat": "{{phase}}: {{ reason }}"}]}
    broken = {"metric": {}, "values": [[1, "NaN"], [2, "+Inf"]]}
    (found,) = series_of(panel, [[result(phase="Failed", reason="NoProgress"), broken]])
    assert (found.name, found.last) == ("Failed: NoProgress", 99.0)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.421, "percentunit", "42.1%"),
        (3 << 30, "bytes", "3 GiB"),
        (12, "bytes", "12 B"),
        (7200, "s", "2 h"),
        (1.5, "s", "1.5 s"),
        (0.25, "ops", "0.25/s"),
        (3, "short", "3"),
    ],
)
def test_values_have_their_units(value: float, unit: str, text: str) -> None:
    assert shown(value, unit) == text
