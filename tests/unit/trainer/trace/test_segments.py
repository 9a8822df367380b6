"""The peaks of a deep model follow from the segments of a few layers."""

from __future__ import annotations

from finetune_trainer.trace.segments import PassPeaks, PassSegments, Segment, compose, total

NOTHING = Segment(0, 0)


def test_each_layer_starts_with_what_the_earlier_ones_have_left() -> None:
    passed = PassSegments(Segment(50, 10), (Segment(100, 30), Segment(70, 20)), Segment(5, 0))
    assert compose(passed, (0, 1, 1)) == PassPeaks(10 + 30 + 20 + 70, 10 + 30 + 20 + 20)
    assert compose(passed, (0,)).forward == 110


def test_backward_layers_run_in_reverse_and_free_what_they_saved() -> None:
    passed = PassSegments(
        NOTHING,
        (Segment(10, 10), Segment(10, 10)),
        NOTHING,
        loss_end=Segment(3, 1),
        backward=(Segment(40, -8), Segment(25, -8)),
        end=Segment(2, 0),
    )
    # 10 for each of four layers, one of the loss, and three layers of the second kind have run.
    assert compose(passed, (0, 1, 1, 1)).backward == max(40 + 1 + 25, 40 + 1 - 24 + 40)
    assert compose(passed, (0, 1)).backward == max(20 + 1 + 25, 20 + 1 - 8 + 40)


def test_the_deeper_model_may_peak_in_another_place_than_the_shallow_one() -> None:
    """With growing gradients, the first layer is the peak of a deep model, and the last one that of a shallow one."""
    passed = PassSegments(
        NOTHING,
        (Segment(2, 1), Segment(2, 1)),
        NOTHING,
        loss_end=Segment(0, 0),
        backward=(Segment(10, 4), Segment(50, 4)),
        end=NOTHING,
    )
    assert compose(passed, (0, 1)).backward == 2 + 50
    deep = compose(passed, (0, *([1] * 20))).backward
    assert deep == max(21 + 4 * 19 + 50, 21 + 4 * 20 + 10)
    assert deep > 2 + 50 + 19 * (compose(passed, (0, 1, 1)).backward - 52 - 4)


def test_a_pass_without_gradients_has_no_backward_part() -> None:
    passed = PassSegments(Segment(4, 4), (Segment(9, 0),), Segment(3, 1))
    assert compose(passed, (0, 0)) == PassPeaks(13, 5)


def test_without_layers_the_segments_are_the_whole_pass() -> None:
    passed = PassSegments(Segment(7, 2), (), NOTHING, Segment(9, -1), (), NOTHING)
    assert compose(passed, ()) == PassPeaks(7, 11)


def test_a_size_counts_each_layers_stand_in() -> None:
    assert total(5, (10, 100), (0, 1, 1)) == 215
