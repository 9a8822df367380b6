from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from finetune_operator.status.usage import GpuTime, PodTime, Price, observe, settle
from hypothesis import given
from hypothesis import strategies as st

from tests.support.operator import NOW

PRICE = Price(Decimal("3.6"), "EUR")
"""A thousandth of the currency for each GPU second."""


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def pod(start: float, end: float | None = None, uid: str = "a", **changes: Any) -> PodTime:
    ended = None if end is None else at(end)
    found = PodTime(uid, at(start), ended, ended is not None, 1, "NVIDIA L4", PRICE)
    return replace(found, **changes)


def attempt(
    *views: tuple[float, list[PodTime]], fields: dict[str, Any] | None = None, succeeded: bool = True
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Observe these pods at these times, one after the other, and settle at the last one."""
    found = dict(fields or {})
    for now, pods in views:
        found = observe(found, pods, at(now))
    return settle(found, at(views[-1][0]), succeeded=succeeded)


def test_a_trainer_counts_from_its_start_to_its_end_times_its_gpus() -> None:
    fields, entry = attempt((5, [pod(0, gpus=4)]), (70, [pod(0, 60, gpus=4)]))
    assert entry == {"gpuSeconds": 240, "gpuProduct": "NVIDIA L4"}
    assert fields["usage"] == {
        "gpuSeconds": 240,
        "wastedGpuSeconds": 0,
        "product": "NVIDIA L4",
        "cost": {"amount": "0.24", "wasted": "0", "currency": "EUR"},
    }
    assert "gpuTime" not in fields["stage"]


def test_an_attempt_that_did_not_succeed_is_wasted() -> None:
    fields, _ = attempt((70, [pod(0, 60)]), succeeded=False)
    assert fields["usage"]["wastedGpuSeconds"] == 60
    assert fields["usage"]["cost"] == {"amount": "0.06", "wasted": "0.06", "currency": "EUR"}


def test_a_pod_that_another_one_replaced_is_wasted_and_the_pause_is_not_used() -> None:
    fields, entry = attempt(
        (10, [pod(0)]),
        (40, [pod(0, 30)]),
        (1000, [pod(0, 30), pod(900, uid="b")]),
        (1100, [pod(0, 30), pod(900, 1050, uid="b")]),
    )
    assert entry["gpuSeconds"] == 180
    assert (fields["usage"]["gpuSeconds"], fields["usage"]["wastedGpuSeconds"]) == (180, 30)


def test_a_pod_that_is_gone_ended_when_that_was_seen() -> None:
    gone: list[PodTime] = []
    fields, entry = attempt((10, [pod(0)]), (40, gone), (500, gone))
    assert entry["gpuSeconds"] == 40
    assert fields["usage"]["gpuSeconds"] == 40


def test_a_pod_that_the_watch_had_lost_goes_on() -> None:
    _, entry = attempt((10, [pod(0)]), (40, []), (50, [pod(0)]), (100, [pod(0, 90)]))
    assert entry["gpuSeconds"] == 90


def test_pods_on_nodes_with_different_clocks_are_not_counted_twice() -> None:
    """The second node's clock is 100 seconds behind, and the first pod's end stays in view."""
    first = pod(0, 300)
    second = pod(210, uid="b")
    fields, entry = attempt(
        (10, [pod(0)]),
        (310, [first]),
        (320, [first, second]),
        (330, [first, second]),
        (500, [first, replace(second, ended=at(400), gone=True)]),
    )
    assert entry["gpuSeconds"] == 400
    assert fields["usage"]["gpuSeconds"] == 400


def test_a_clock_that_jumps_back_counts_nothing_rather_than_less_than_nothing() -> None:
    fields, entry = attempt((10, [pod(100)]), (20, [pod(100, 50)]))
    assert entry["gpuSeconds"] == 0
    assert fields["usage"]["gpuSeconds"] == 0


def test_an_attempt_whose_trainer_never_started_uses_nothing() -> None:
    fields, entry = attempt((10, []), fields={"stage": {"name": "Train"}})
    assert entry == {}
    assert "usage" not in fields


def test_every_pod_keeps_the_price_of_its_start() -> None:
    dearer = Price(Decimal(36), "EUR")
    fields, _ = attempt(
        (10, [pod(0)]), (20, [pod(0, price=dearer)]), (110, [pod(0, 100, price=dearer)]), fields={}
    )
    assert fields["usage"]["cost"]["amount"] == "0.1"
    fields, _ = attempt((210, [pod(200, 300, uid="b", price=dearer)]), fields=fields)
    assert fields["usage"]["cost"]["amount"] == "1.1"


def test_time_without_a_price_or_in_another_currency_is_said_to_lack_one() -> None:
    fields, _ = attempt((70, [pod(0, 60, price=None)]))
    assert fields["usage"]["unpricedGpuSeconds"] == 60
    assert "cost" not in fields["usage"]
    fields, _ = attempt((170, [pod(100, 160, uid="b")]), fields=fields)
    dollars = pod(200, 260, uid="c", price=Price(Decimal(1), "USD"))
    fields, _ = attempt((270, [dollars]), fields=fields)
    assert fields["usage"]["unpricedGpuSeconds"] == 120
    assert fields["usage"]["cost"] == {"amount": "0.06", "wasted": "0", "currency": "EUR"}


def test_what_another_version_wrote_is_kept_and_not_added_to() -> None:
    strange = {"usage": {"gpuSeconds": "many"}}
    fields, entry = attempt((70, [pod(0, 60)]), fields=strange)
    assert fields["usage"] == strange["usage"]
    assert entry["gpuSeconds"] == 60
    assert GpuTime.read({"gpuTime": {"startTime": "noon"}}) is None
    fields, entry = settle({"stage": {"gpuTime": {"startTime": "noon"}}}, NOW, succeeded=True)
    assert (fields, entry) == ({"stage": {}}, {})


def test_the_stored_form_is_read_back_whole() -> None:
    fields = observe({}, [pod(0, 60)], at(60))
    held = GpuTime.read(fields["stage"])
    assert held is not None
    assert held.show() == fields["stage"]["gpuTime"]
    assert held.price == PRICE


POD = st.tuples(st.integers(-1000, 1000), st.none() | st.integers(-1000, 1000), st.integers(0, 3))
VIEW = st.tuples(st.integers(-1000, 1000), st.lists(POD, max_size=3))
ATTEMPT = st.tuples(st.lists(VIEW, min_size=1, max_size=5), st.booleans())


@given(attempts=st.lists(ATTEMPT, min_size=1, max_size=5))
def test_the_attempts_add_up_to_the_total_whatever_clocks_and_watches_show(
    attempts: list[tuple[list[tuple[int, list[tuple[int, int | None, int]]]], bool]],
) -> None:
    fields: dict[str, Any] = {}
    seconds, wasted, amount = 0, 0, Decimal(0)
    for views, succeeded in attempts:
        shown = [(now, [pod(start, end, uid=str(uid)) for start, end, uid in pods]) for now, pods in views]
        before = int(fields.get("usage", {}).get("gpuSeconds", 0))
        fields, entry = attempt(*shown, fields=fields, succeeded=succeeded)
        assert entry.get("gpuSeconds", 0) >= 0
        seconds += entry.get("gpuSeconds", 0)
        assert int(fields.get("usage", {}).get("gpuSeconds", 0)) >= before
        if not succeeded:
            wasted += entry.get("gpuSeconds", 0)
    usage = fields.get("usage", {"gpuSeconds": 0, "wastedGpuSeconds": 0})
    assert usage["gpuSeconds"] == seconds
    assert wasted <= usage["wastedGpuSeconds"] <= seconds
    amount = Decimal(usage.get("cost", {}).get("amount", "0"))
    assert amount == Decimal(seconds) / 1000
