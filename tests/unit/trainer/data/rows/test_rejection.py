from __future__ import annotations

import pickle

from finetune_trainer.data.rows.rejection import RowReason, RowRejected


def test_a_rejection_is_the_same_after_pickling() -> None:
    rejection = RowRejected(RowReason.TOO_LONG, "messages[1]", "found \u00e9")
    copied = pickle.loads(pickle.dumps(rejection))  # noqa: S301 -- made on the line above
    assert (copied.reason, copied.field, copied.detail) == (
        rejection.reason,
        rejection.field,
        rejection.detail,
    )
