"""The text form of gauges that are rendered by hand, because jobs have very many of them."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, isnan


@dataclass(frozen=True)
class Family:
    """A family of gauges: its meaning, its unit, and its labels in the order of the text."""

    help: str
    unit: str = ""
    labels: tuple[str, ...] = ("name", "namespace")


def head(name: str, text: str) -> bytes:
    """The lines in front of a family of gauges."""
    return f"# HELP {name} {text}\n# TYPE {name} gauge\n".encode()


def number(value: float) -> str:
    """A number as Prometheus writes it. Losses may be infinite or not a number."""
    if isfinite(value):
        return repr(float(value))
    return "NaN" if isnan(value) else "+Inf" if value > 0 else "-Inf"


def escape(text: str) -> str:
    """A label's value."""
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def identity(name: str, namespace: str) -> str:
    """The labels that every series of a job has."""
    return f'name="{escape(name)}",namespace="{escape(namespace)}"'
