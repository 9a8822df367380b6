"""The meter's live bytes and its peak."""

from __future__ import annotations

from finetune_operator.sizing.memory.meter import Kind, Meter


def test_the_peak_is_the_largest_total_with_its_kinds() -> None:
    meter = Meter()
    meter.alloc(10)
    meter.alloc(5, Kind.SCORES)
    meter.free(10)
    meter.alloc(3)
    assert (meter.total, meter.peak) == (8, 15)
    assert meter.at_peak == (0, 10, 0, 5)


def test_saving_moves_bytes_to_another_kind_and_keeps_the_total() -> None:
    meter = Meter()
    meter.alloc(10)
    meter.save(4)
    assert meter.total == 10
    assert (meter.now[Kind.SAVED], meter.now[Kind.TEMPORARY]) == (4, 6)


def test_transient_bytes_raise_only_the_peak() -> None:
    meter = Meter()
    meter.alloc(10)
    meter.transient(7, Kind.UNPACKED)
    assert (meter.total, meter.peak) == (10, 17)
    assert meter.at_peak[Kind.UNPACKED] == 7


def test_a_kernels_workspace_counts_only_above_the_peak() -> None:
    meter = Meter()
    meter.transient(100)
    meter.alloc(60)
    meter.workspace(30)
    assert meter.kernel_workspace == 0
    meter.workspace(50)
    assert meter.kernel_workspace == 10
    assert meter.peak == 100
