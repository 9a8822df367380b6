"""Write the tables of all metrics into docs/metrics.md, from the code that exposes them. With --check, compare only."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_operator.cluster.node_store import GpuStore
from finetune_operator.runtime import activity_series, exposition, job_series
from finetune_operator.runtime.families import Family
from finetune_operator.runtime.health_metrics import HealthMetrics
from finetune_operator.runtime.metrics import GpuCollector, OperatorMetrics
from finetune_trainer.telemetry import metrics as trainer
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

ROOT = Path(__file__).resolve().parents[2]
PAGE = Path("docs/metrics.md")
_UNITS = {"seconds": "seconds", "bytes": "bytes", "ratio": "0 to 1"}
_COUNTED = "count"


@dataclass(frozen=True)
class Entry:
    """One metric of the catalogue, with the name that Prometheus stores; of a histogram, without its suffixes."""

    name: str
    type: str
    labels: tuple[str, ...]
    unit: str
    meaning: str


class _Recorder(CollectorRegistry):
    """Keeps the collectors that are registered, because the registry itself does not list their labels."""

    def __init__(self) -> None:
        super().__init__()
        self.collectors: list[Any] = []

    def register(self, collector: Any) -> None:
        """Keep the collector, and register it."""
        self.collectors.append(collector)
        super().register(collector)


def operator_entries() -> list[Entry]:
    """Every metric of the operator."""
    registry = _Recorder()
    OperatorMetrics(registry)
    HealthMetrics(registry)
    gpus = GpuCollector(GpuStore((), allow_time_slicing=False))
    found = [_entry(each.describe()[0], each._labelnames) for each in registry.collectors]  # noqa: SLF001 -- no other way
    found += [_entry(each, each._labelnames) for each in gpus.collect()]  # type: ignore[attr-defined]  # noqa: SLF001 -- see above
    families = {
        **job_series.families(),
        **activity_series.FAMILIES,
        **exposition.FAMILIES,
    }
    found += [_family(name, family) for name, family in families.items()]
    return sorted(found, key=lambda entry: entry.name)


def trainer_entries() -> list[Entry]:
    """Every metric of a trainer."""
    found = [
        Entry(trainer.PREFIX + gauge.name, "gauge", trainer.LABELS, gauge.unit, gauge.text)
        for gauge in trainer.GAUGES
    ]
    found += [
        Entry(trainer.PREFIX + each.name, kind, (*trainer.LABELS, *more), each.unit, each.text)
        for each, kind, more in (
            (trainer.MEMORY, "gauge", ("kind",)),
            *((each, "gauge", ("rank",)) for each in trainer.RANKS.values()),
            (trainer.STEPS, "summary", ()),
            (trainer.TOKENS, "counter", ()),
        )
    ]
    return sorted(found, key=lambda entry: entry.name)


def table(entries: Iterable[Entry]) -> list[str]:
    """The lines of a Markdown table."""
    lines = ["| metric | type | labels | unit | meaning |", "|---|---|---|---|---|"]
    for entry in entries:
        labels = ", ".join(f"`{label}`" for label in sorted(entry.labels))
        meaning = entry.meaning.replace("|", "\\|")
        lines.append(f"| `{entry.name}` | {entry.type} | {labels} | {entry.unit} | {meaning} |")
    return lines


def document(text: str) -> str:
    """docs/metrics.md with its tables brought up to date. Raises ValueError if it has no place for them."""
    for place, entries in (("operator", operator_entries()), ("trainer", trainer_entries())):
        begin, end = f"<!-- metrics of the {place} -->\n", f"<!-- end of the {place} -->\n"
        if begin not in text or end not in text:
            raise ValueError(f"docs/metrics.md must have the lines {begin!r} and {end!r}, and lacks one")
        before, _, rest = text.partition(begin)
        text = before + begin + "\n".join(table(entries)) + "\n" + end + rest.partition(end)[2]
    return text


def main() -> int:
    """Write or check the page. Return 1 if a check finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing, and fail if the page is out of date"
    )
    check = parser.parse_args().check
    path = ROOT / PAGE
    present = path.read_text()
    wanted = document(present)
    if wanted == present:
        return 0
    if check:
        print(f"{PAGE} is out of date; run scripts/docs/metrics_catalog.py to update it", file=sys.stderr)
        return 1
    path.write_text(wanted)
    print(f"wrote {PAGE}")
    return 0


def _entry(metric: Metric, labels: Iterable[str]) -> Entry:
    suffix = "_total" if metric.type == "counter" else ""
    name = metric.name + suffix
    unit = next((text for part, text in _UNITS.items() if metric.name.endswith(f"_{part}")), "")
    return Entry(name, metric.type, tuple(labels), unit or _COUNTED * bool(suffix), metric.documentation)


def _family(name: str, family: Family) -> Entry:
    return Entry(name, "gauge", family.labels, family.unit, family.help)


if __name__ == "__main__":
    raise SystemExit(main())
