from __future__ import annotations

import io
import re

import pytest
from finetune_cli.plan.document import document, unknown_model
from finetune_cli.plan.table import Style, duration_text, style_of, table
from finetune_operator.api.plan import LearningRate
from finetune_operator.sizing.cost.prices import parse_cost
from finetune_operator.sizing.cost.work import known_rows
from finetune_operator.sizing.decision import decide_training
from finetune_operator.sizing.gpus.gpu import Offer
from finetune_operator.sizing.memory.calibration import NO_CALIBRATION
from finetune_operator.sizing.memory.stack import DEFAULT_STACK

from tests.support.sizing_jobs import make_request, on_node, product, sized

PLAIN = Style(80, blocks=False)
RATE = LearningRate(0.00012, "a rule")


def printed(*offers: Offer, style: Style = PLAIN) -> str:
    request = make_request()
    return table(document(request, decide_training(request, offers), RATE), style)


@pytest.mark.parametrize(
    ("size", "whole", "blocks", "bar"),
    [
        (50, 100, False, "#####"),
        (100, 100, False, "##########"),
        (1, 10_000, False, "#"),
        (200, 100, False, "##########"),
        (0, 100, False, ""),
        (5, 0, False, ""),
        (50, 100, True, "█████"),
        (25, 100, True, "██▌"),
        (1, 10_000, True, "▏"),
    ],
)
def test_a_bar_shows_the_share_and_every_size_above_zero(
    size: int, whole: int, bar: str, *, blocks: bool
) -> None:
    assert Style(80, blocks=blocks).bar(size, whole, 10) == bar


def test_files_and_pipes_have_eighty_plain_columns() -> None:
    assert style_of(io.StringIO()) == PLAIN


@pytest.mark.parametrize("style", [PLAIN, Style(60, blocks=True), Style(120, blocks=True)])
def test_no_line_is_wider_than_the_style(style: Style) -> None:
    text = printed(on_node(product("NVIDIA L4")), style=style)
    assert max(map(len, text.splitlines())) <= style.width


def test_the_largest_phase_is_marked_and_its_terms_are_sorted_by_size() -> None:
    text = printed(on_node(product("NVIDIA L4")))
    assert len(re.findall("  peak$", text, re.MULTILINE)) == 1
    lines = text.splitlines()
    first = next(index for index, line in enumerate(lines) if line.endswith("  peak")) + 1
    last = next(index for index, line in enumerate(lines) if line.startswith("Device"))
    found = [re.search(r"([\d.]+) ([GM])iB", line) for line in lines[first:last]]
    sizes = [float(size[1]) * (1024 if size[2] == "G" else 1) for size in found if size is not None]
    assert len(sizes) > 3
    assert sizes == sorted(sizes, reverse=True)


def test_nodes_are_counted_by_product_and_named_gpus_are_not() -> None:
    nodes = [on_node(product("NVIDIA L4"), name) for name in ("a", "b")]
    assert "nodes:                     2 node(s) with NVIDIA L4" in printed(*nodes)
    assert "nodes:" not in printed(Offer(product("NVIDIA L4"), "nvidia.com/gpu", 1))


def test_a_rejected_job_ends_with_the_message() -> None:
    text = printed(on_node(sized(1 << 30, "Small")))
    assert text.startswith("mistral, 7.25 billion parameters: does not fit Small (1.00 GiB)\n")
    assert "gradientCheckpointing:" in text
    assert "must fit on one GPU" in text.rpartition("\n\n")[2]


def test_an_unknown_model_has_a_headline_and_its_reason() -> None:
    text = table(unknown_model("it is a mixture of experts", DEFAULT_STACK, NO_CALIBRATION), PLAIN)
    assert text == "The model's memory cannot be computed.\n\nit is a mixture of experts\n"


def test_a_refused_model_has_another_headline() -> None:
    text = table(unknown_model("it has experts", DEFAULT_STACK, NO_CALIBRATION, refused=True), PLAIN)
    assert text == "The model cannot be tuned.\n\nit has experts\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1, "1 s"),
        (59, "59 s"),
        (60, "1 min"),
        (3569, "59 min"),
        (3599, "1 h 0 min"),
        (86_400, "24 h 0 min"),
        (864_000, "10 days"),
    ],
)
def test_durations_have_the_two_largest_units(seconds: int, text: str) -> None:
    assert duration_text(seconds) == text


def test_time_and_cost_come_with_their_bounds_and_sources() -> None:
    request = make_request()
    decision = decide_training(request, [on_node(product("NVIDIA L4"))])
    rows = known_rows(1000, 100, 512, tokens=300_000)
    prices = parse_cost({"currency": "EUR", "prices": [{"product": "L4", "perGpuHour": "0.7"}]})
    text = " ".join(table(document(request, decision, RATE, rows, prices), PLAIN).split())
    assert re.search(r"duration: .* from .* to .*; [0-9.]+ GPU hours \(NVIDIA L4 has no measured run", text)
    assert re.search(
        r"cost: [0-9.]+ EUR, from [0-9.]+ to [0-9.]+ \(0.7 EUR per GPU hour of NVIDIA L4\)", text
    )
    unpriced = " ".join(table(document(request, decision, RATE, rows), PLAIN).split())
    assert "cost: not known (the chart's cost.prices is empty)" in unpriced
    unknown = " ".join(table(document(request, decision, RATE), PLAIN).split())
    assert "duration: not known (the number of training rows is not known)" in unknown
