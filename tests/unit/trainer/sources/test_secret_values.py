"""Values from Secrets that a request sends in a header."""

from __future__ import annotations

import pytest
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.fetch_target import MODEL
from finetune_trainer.sources.secret_values import require_header_value


def test_a_word_of_ascii_can_be_a_header() -> None:
    assert require_header_value("hf_aB3+/=~", "the token", MODEL) == "hf_aB3+/=~"


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("hf_a\nhf_b", "a line break at position 5 of 9"),
        ("hf_a b", "white space at position 5 of 6"),
        ("hf_ä", "a character outside ASCII at position 4 of 4"),
        ("hf_\x1b", "a control character at position 4 of 4"),
        ("\u201chf_a\u201d", "a character outside ASCII at position 1 of 6"),
    ],
)
def test_a_value_that_cannot_be_a_header_is_named_but_not_repeated(value: str, found: str) -> None:
    with pytest.raises(StageError, match=found) as caught:
        require_header_value(value, "the token", MODEL)
    assert caught.value.reason is Reason.MODEL_ACCESS_DENIED
    assert "hf_" not in caught.value.message
