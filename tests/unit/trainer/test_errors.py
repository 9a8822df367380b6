from __future__ import annotations

from finetune_trainer.errors import Reason, StageError, chain_of


def test_a_chain_has_causes_contexts_and_grouped_errors_each_once() -> None:
    first, second = ValueError("first"), KeyError("second")
    first.__cause__, second.__context__ = second, first
    group = ExceptionGroup("two workers", [first, second])
    assert list(chain_of(group)) == [group, second, first]


def test_a_chain_ends_where_an_error_has_a_reason_or_says_that_it_has_no_cause() -> None:
    typed, last = StageError(Reason.INVALID_MODEL, "unreadable"), ValueError("last")
    typed.__cause__ = OSError("behind")
    last.__cause__ = typed
    assert list(chain_of(last)) == [last]
    alone = ValueError("alone")
    alone.__context__, alone.__suppress_context__ = OSError("handled"), True
    assert list(chain_of(alone)) == [alone]
