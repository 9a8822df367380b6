"""Write the Grafana dashboards of the chart from scripts/docs/dashboards. With --check, compare only.

Every panel gets a unit, a description and the data source of the variable, so a dashboard fits any Grafana.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
SOURCES = Path("scripts/docs/dashboards")
FOLDER = Path("helm/finetune-operator/files/dashboards")
SCHEMA_VERSION = 41
"""The version of the dashboard's schema in Grafana 12. Later versions migrate it when they load it."""
_COLUMNS = 24
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class Panel:
    """One panel. `may_be_empty` says why it can have no data in a healthy cluster; empty if it always has some."""

    title: str
    description: str
    queries: Sequence[Mapping[str, str]]
    """Each with `expr` and `legend`."""
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    stacked: bool = False
    may_be_empty: str = ""


def panel_of(document: Mapping[str, Any]) -> Panel:
    """Read a panel. Raises TypeError if it has an unknown member or lacks one."""
    members = dict(document)
    return Panel(may_be_empty=members.pop("mayBeEmpty", ""), **members)


def load() -> list[dict[str, Any]]:
    """The sources of all dashboards."""
    return [yaml.safe_load(path.read_text()) for path in sorted((ROOT / SOURCES).glob("*.yaml"))]


def render(dashboard: Mapping[str, Any]) -> dict[str, Any]:
    """The dashboard in Grafana's JSON model."""
    panels: list[dict[str, Any]] = []
    top = 0
    for row in dashboard["rows"]:
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": row["title"],
                "collapsed": False,
                "panels": [],
                "gridPos": {"x": 0, "y": top, "w": _COLUMNS, "h": 1},
            }
        )
        top += 1
        left = tallest = 0
        for panel in map(panel_of, row["panels"]):
            if left + panel.width > _COLUMNS:
                top, left, tallest = top + tallest, 0, 0
            place = {"x": left, "y": top, "w": panel.width, "h": panel.height}
            panels.append({"id": len(panels) + 1, **_panel(panel), "gridPos": place})
            left, tallest = left + panel.width, max(tallest, panel.height)
        top += tallest
    return {
        "uid": dashboard["uid"],
        "title": dashboard["title"],
        "description": dashboard["description"],
        "tags": ["finetune"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "",
        "templating": {"list": [_data_source(), *map(_variable, dashboard["variables"])]},
        "annotations": {"list": []},
        "links": [
            {
                "title": link["title"],
                "type": "link",
                "url": f"/d/{link['uid']}",
                "keepTime": True,
                "includeVars": False,
                "targetBlank": False,
                "icon": "dashboard",
                "tags": [],
                "tooltip": "",
                "asDropdown": False,
            }
            for link in dashboard["links"]
        ],
        "panels": panels,
    }


def _data_source() -> dict[str, Any]:
    return {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "current": {},
        "hide": 0,
        "refresh": 1,
        "regex": "",
        "multi": False,
        "includeAll": False,
        "options": [],
    }


def _variable(variable: Mapping[str, Any]) -> dict[str, Any]:
    name, query, multi = variable["name"], variable["query"], variable.get("multi", False)
    everything: dict[str, Any] = {"allValue": ".*", "current": {"text": "All", "value": "$__all"}}
    return {
        "name": name,
        "label": variable["label"],
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "hide": 0,
        "regex": "",
        "multi": multi,
        "includeAll": multi,
        "options": [],
        **(everything if multi else {"current": {}}),
    }


def _panel(panel: Panel) -> dict[str, Any]:
    name = panel.kind == "stat-name"
    kind = "stat" if name else panel.kind
    now = kind in {"stat", "gauge", "bargauge", "piechart"}
    empty = f" Without data: {panel.may_be_empty}." if panel.may_be_empty else ""
    return {
        "type": kind,
        "title": panel.title,
        "description": panel.description + empty,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": _defaults(panel, kind), "overrides": []},
        "options": _options(kind, name=name),
        "targets": [
            {
                "refId": chr(ord("A") + place),
                "datasource": _SOURCE,
                "editorMode": "code",
                "expr": query["expr"],
                "legendFormat": query["legend"],
                "instant": now,
                "range": not now,
            }
            for place, query in enumerate(panel.queries)
        ],
    }


def _defaults(panel: Panel, kind: str) -> dict[str, Any]:
    found: dict[str, Any] = {"unit": panel.unit, "color": {"mode": "palette-classic"}, "mappings": []}
    if panel.unit == "percentunit" and kind == "gauge":
        found |= {"min": 0, "max": 1}
    if kind == "timeseries":
        found["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 20 if panel.stacked else 0,
            "showPoints": "auto",
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        }
    if kind == "state-timeline":
        found["custom"] = {"fillOpacity": 80, "lineWidth": 0}
    return found


def _options(kind: str, *, name: bool) -> dict[str, Any]:
    """Return all options that Grafana's schema requires for a kind of panel; those without a choice here are its defaults."""
    legend = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
    calculated = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    if kind == "timeseries":
        return {
            "legend": legend,
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    if kind == "state-timeline":
        return {
            "legend": legend,
            "mergeValues": True,
            "showValue": "never",
            "alignValue": "left",
            "rowHeight": 0.8,
            "tooltip": {"mode": "single", "sort": "none"},
        }
    if kind == "piechart":
        return {
            "pieType": "donut",
            "reduceOptions": calculated,
            "orientation": "auto",
            "legend": {**legend, "displayMode": "table", "placement": "right", "values": ["value"]},
            "tooltip": {"mode": "single", "sort": "none"},
        }
    if kind == "bargauge":
        return {
            "reduceOptions": calculated,
            "orientation": "horizontal",
            "displayMode": "basic",
            "valueMode": "color",
            "namePlacement": "auto",
            "showUnfilled": True,
            "sizing": "auto",
            "minVizWidth": 8,
            "minVizHeight": 16,
            "maxVizHeight": 300,
            "legend": {**legend, "showLegend": False},
        }
    if kind == "gauge":
        return {
            "reduceOptions": calculated,
            "showThresholdLabels": False,
            "showThresholdMarkers": True,
            "orientation": "auto",
            "sizing": "auto",
            "minVizWidth": 75,
            "minVizHeight": 75,
        }
    return {
        "reduceOptions": calculated,
        "colorMode": "value",
        "graphMode": "none",
        "textMode": "name" if name else "auto",
        "justifyMode": "auto",
        "orientation": "auto",
        "wideLayout": True,
        "showPercentChange": False,
        "percentChangeColorMode": "standard",
    }


def documents() -> dict[Path, str]:
    """The text of each dashboard by its path in the repository."""
    return {
        FOLDER / f"{dashboard['uid']}.json": json.dumps(render(dashboard), indent=1) + "\n"
        for dashboard in load()
    }


def main() -> int:
    """Write or check the dashboards. Return 1 if a check finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing, and fail if a file is out of date"
    )
    check = parser.parse_args().check
    stale = False
    for path, text in documents().items():
        file = ROOT / path
        if file.exists() and file.read_text() == text:
            continue
        stale = True
        if check:
            print(f"{path} is out of date; run scripts/docs/dashboards.py to update it", file=sys.stderr)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            print(f"wrote {path}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
