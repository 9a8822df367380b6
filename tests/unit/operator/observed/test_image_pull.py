from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from finetune_operator.api.stages import Stage
from finetune_operator.observed.image_pull import LONGEST, pull_seconds, took_time
from finetune_operator.observed.warnings import EventRecord

from tests.support.operator import NOW
from tests.support.world import started

IMAGE = "registry.example.com/finetune/trainer@sha256:0123"
PRESENT = f'Container image "{IMAGE}" already present on machine'


def told(*messages: str, reason: str = "Pulled", image: str = IMAGE) -> float | None:
    return pull_seconds([EventRecord("uid", False, reason, each, "") for each in messages], image)


@pytest.mark.parametrize(
    ("times", "seconds"),
    [
        ("in 3.2s (10.1s including waiting). Image size: 7340032 bytes.", 10.1),
        ("in 850ms (850ms including waiting). Image size: 7340032 bytes.", 0.85),
        ("in 1m3.5s", 63.5),
        ("in 1h2m3.25s (1h2m4s including waiting).", 3724),
        ("in 450.5µs (451.5µs including waiting). Image size: 1 bytes.", 451.5e-6),
        ("in 99999h0m0s (99999h0m0s including waiting).", LONGEST),
    ],
)
def test_the_time_of_a_pull_includes_its_wait(times: str, seconds: float) -> None:
    assert told(f'Successfully pulled image "{IMAGE}" {times}') == pytest.approx(seconds)


@pytest.mark.parametrize("more", ["", " and can be accessed by the pod"])
def test_an_image_that_the_node_had_took_no_time(more: str) -> None:
    assert told(PRESENT + more) == 0


def test_the_pulls_of_all_containers_add_up() -> None:
    pulled = f'Successfully pulled image "{IMAGE}" in 20s (20s including waiting).'
    assert told(pulled, PRESENT, pulled.replace("20s", "500ms")) == 20.5


@pytest.mark.parametrize(
    "message",
    [
        "",
        'Successfully pulled image "other" in 3s (3s including waiting).',
        'Container image "other" already present on machine',
        f'Successfully pulled image "{IMAGE}" in forever',
        f'Successfully pulled image "{IMAGE}" in -3s',
        f'Successfully pulled image "{IMAGE}" in 3s5 (NaN including waiting)',
        f'Successfully pulled image "{IMAGE}" in {"9" * 4000}',
        f'Successfully pulled image "{IMAGE}',
    ],
)
def test_other_messages_tell_nothing(message: str) -> None:
    assert told(message) is None


def test_a_number_of_any_length_is_bounded() -> None:
    assert told(f'Successfully pulled image "{IMAGE}" in {"9" * 4000}h') == LONGEST


def test_events_for_other_reasons_tell_nothing() -> None:
    assert told(PRESENT, reason="Pulling") is None


@pytest.mark.parametrize(("after", "read"), [(0, False), (2, False), (3, True), (200, True)])
def test_only_a_pod_that_took_time_to_start_is_read(after: float, read: bool) -> None:  # noqa: FBT001 -- parametrized
    pod = started(Stage.TRAIN).run_pod("demo-train-0", scheduled=NOW, started=NOW + timedelta(seconds=after))
    assert took_time(pod) is read
    assert not took_time(replace(pod, started=None))
    assert not took_time(replace(pod, scheduled=None))
