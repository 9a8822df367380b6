from __future__ import annotations

import io
import json
from datetime import UTC, datetime

import pytest
import yaml
from finetune_cli.text import columns, console_for, duration, moment, number, print_document, printable


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (-5, "0s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (185, "3m05s"),
        (3599.6, "1h00m"),
        (7800, "2h10m"),
        (86399, "23h59m"),
        (86400 * 4 + 3 * 3600, "4d3h"),
    ],
)
def test_durations_have_at_most_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_times_are_read_in_the_form_of_the_api_server() -> None:
    assert moment("2026-11-29T10:00:00Z") == datetime(2026, 11, 29, 10, tzinfo=UTC)
    assert moment(None) is None
    assert moment("soon") is None


@pytest.mark.parametrize(
    ("text", "value"),
    [("1.5", 1.5), ("nan", None), ("inf", None), (None, None), ("x", None), ("-3e-4", -3e-4)],
)
def test_only_finite_numbers_are_numbers(text: str | None, value: float | None) -> None:
    assert number(text) == value


def test_columns_are_aligned_and_absent_values_are_dashes() -> None:
    assert columns(["NAME", "AGE"], [["a-long-name", "3s"], ["b", None]]) == [
        "NAME          AGE",
        "a-long-name   3s",
        "b             -",
    ]


def test_control_characters_of_an_object_never_reach_the_terminal() -> None:
    assert printable("a\x1b[31mred\nb") == "a [31mred b"


def test_documents_are_printed_as_json_and_yaml() -> None:
    for form, read in (("json", json.loads), ("yaml", yaml.safe_load)):
        output = io.StringIO()
        print_document({"name": "é", "values": [1, None]}, form, output)
        assert read(output.getvalue()) == {"name": "é", "values": [1, None]}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("output", "environment", "colors"),
    [
        (Terminal(), {"TERM": "xterm-256color"}, True),
        (Terminal(), {"TERM": "xterm-256color", "NO_COLOR": "1"}, False),
        (Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {"TERM": "xterm-256color", "FORCE_COLOR": "1"}, False),
    ],
)
def test_colors_are_for_terminals_without_no_color(
    output: io.StringIO, environment: dict[str, str], *, colors: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TERM", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    console_for(output).print("text", style="red")
    assert ("\x1b[31m" in output.getvalue()) is colors


def test_a_pipe_has_eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert console_for(io.StringIO()).width == 80
