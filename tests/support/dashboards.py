"""The dashboards of the chart, and the queries of their panels as Grafana sends them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.support.chart import CHART

FOLDER = CHART / "files" / "dashboards"


@dataclass(frozen=True)
class PanelQueries:
    """The queries of one panel. `may_be_empty` is the reason in its description; empty if there is none."""

    dashboard: str
    title: str
    queries: tuple[str, ...]
    may_be_empty: str


def dashboards() -> list[dict[str, Any]]:
    """The dashboards as the chart has them."""
    return [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]


def panels(dashboard: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The panels of a dashboard without its rows."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def panel_queries(variables: Mapping[str, str]) -> Iterator[PanelQueries]:
    """All panels, with the values of `variables` in their queries."""
    for dashboard in dashboards():
        for panel in panels(dashboard):
            queries = tuple(filled(target["expr"], variables) for target in panel["targets"])
            empty = panel["description"].partition(" Without data: ")[2]
            yield PanelQueries(dashboard["uid"], panel["title"], queries, empty)


def filled(query: str, variables: Mapping[str, str]) -> str:
    """The query with its variables replaced. Raises KeyError for an unknown one."""
    return re.sub(r"\$(\w+)", lambda match: variables[match[1]], query)
