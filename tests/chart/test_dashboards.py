"""The dashboards of the chart: complete, stable, and about series that exist."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from scripts.docs.dashboards import documents
from scripts.docs.metrics_catalog import operator_entries
from tests.support.chart import CHART, only, render
from tests.support.dashboards import dashboards, filled, panel_queries, panels
from tests.support.repository import ROOT

SUFFIXES = ("_bucket", "_sum", "_count")
REQUIRED = {
    "bargauge": "displayMode legend maxVizHeight minVizHeight minVizWidth namePlacement orientation reduceOptions showUnfilled "
    "sizing valueMode",
    "gauge": "minVizHeight minVizWidth orientation reduceOptions showThresholdLabels showThresholdMarkers sizing",
    "piechart": "legend orientation pieType reduceOptions tooltip",
    "stat": "colorMode graphMode justifyMode orientation percentChangeColorMode reduceOptions showPercentChange textMode "
    "wideLayout",
    "state-timeline": "alignValue legend mergeValues rowHeight showValue tooltip",
    "timeseries": "legend tooltip",
}
"""Options of each kind of panel in the schema of Grafana's foundation SDK, which requires all of them."""


def test_the_files_are_those_of_their_sources() -> None:
    assert {path: (ROOT / path).read_text() for path in documents()} == documents()


def test_dashboards_have_fixed_identities_and_the_schema_of_one_grafana() -> None:
    found = dashboards()
    assert [each["uid"] for each in found] == ["finetune-fleet", "finetune-job", "finetune-operator"]
    for dashboard in found:
        assert dashboard["schemaVersion"] == 41
        ids = [panel["id"] for panel in dashboard["panels"]]
        assert len(ids) == len(set(ids))
        linked = {link["url"].removeprefix("/d/") for link in dashboard["links"]}
        assert linked <= {each["uid"] for each in found} - {dashboard["uid"]}


def test_each_panel_has_a_unit_a_description_and_the_chosen_data_source() -> None:
    for dashboard in dashboards():
        variables = {each["name"] for each in dashboard["templating"]["list"]}
        assert "datasource" in variables
        for panel in panels(dashboard):
            assert panel["title"]
            assert panel["description"].endswith(".")
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert panel["targets"]
            for target in panel["targets"]:
                assert (
                    target["datasource"]
                    == panel["datasource"]
                    == {"type": "prometheus", "uid": "${datasource}"}
                )
                known = dict.fromkeys(variables, "x") | {"__rate_interval": "1m"}
                filled(target["expr"], known)


def test_each_panel_has_the_options_that_grafanas_schema_requires() -> None:
    for dashboard in dashboards():
        for panel in panels(dashboard):
            assert sorted(panel["options"]) == REQUIRED[panel["type"]].split(), panel["title"]
            if "legend" in panel["options"]:
                assert {"calcs", "displayMode", "placement", "showLegend"} <= panel["options"][
                    "legend"
                ].keys()


def test_panels_stay_in_the_grid_and_never_overlap() -> None:
    for dashboard in dashboards():
        taken: set[tuple[int, int]] = set()
        for panel in dashboard["panels"]:
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert max(x for x, _ in cells) < 24
            assert not cells & taken, panel["title"]
            taken |= cells


def test_panels_ask_only_for_series_that_the_operator_has() -> None:
    known = {entry.name for entry in operator_entries()}
    known |= {name + suffix for name in known for suffix in SUFFIXES}
    names = re.compile(r"\b(?:finetune|workqueue|controller_runtime|rest_client|leader_election)\w*")
    for dashboard in dashboards():
        for panel in panels(dashboard):
            for target in panel["targets"]:
                used = set(names.findall(re.sub(r'"[^"]*"', "", target["expr"])))
                assert used or "vector" in target["expr"]
                assert used <= known, panel["title"]


def test_each_dashboard_becomes_a_config_map_for_the_sidecar() -> None:
    assert not any("dashboard" in item["metadata"]["name"] for item in render())
    objects = render(
        "--values", str(CHART / "ci/full-values.yaml"), "--set", "dashboards.namespace=monitoring"
    )
    for dashboard in dashboards():
        found = only(objects, "ConfigMap", dashboard["uid"])
        assert found["metadata"]["namespace"] == "monitoring"
        assert found["metadata"]["labels"]["grafana_dashboard"] == "yes"
        assert found["metadata"]["annotations"] == {"grafana_folder": "Machine learning"}
        ((name, text),) = found["data"].items()
        assert name.endswith(".json")
        assert json.loads(text) == dashboard


def test_a_long_name_of_the_release_keeps_the_config_maps_apart() -> None:
    objects = render("--set", f"dashboards.enabled=true,fullnameOverride={'a' * 63}")
    names = {only(objects, "ConfigMap", each["uid"])["metadata"]["name"] for each in dashboards()}
    assert len(names) == 3
    assert max(map(len, names)) <= 63


@pytest.mark.prometheus
def test_prometheus_understands_every_query(tmp_path: Path) -> None:
    variables = {
        "namespace": "team",
        "job": "demo",
        "operator_namespace": "system",
        "__rate_interval": "1m",
    }
    queries = [query for panel in panel_queries(variables) for query in panel.queries]
    assert queries
    rules = [{"record": f"query:{place}", "expr": query} for place, query in enumerate(queries)]
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run(
        ["promtool", "check", "rules", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
