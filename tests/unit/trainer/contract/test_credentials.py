"""Values from Secrets."""

from __future__ import annotations

import pytest
from finetune_trainer.contract.credentials import clean_secret


@pytest.mark.parametrize(
    "stored",
    [
        "hf_x",
        "hf_x\n",
        "\r\n hf_x\t",
        "\ufeffhf_x",
        "hf_x\u00a0",
        "\u200bhf_x\x00\n",
        " \ufeff hf_x \ufeff\n",
    ],
)
def test_white_space_around_a_secret_is_removed(stored: str) -> None:
    assert clean_secret(stored) == "hf_x"


def test_a_missing_secret_is_empty() -> None:
    assert clean_secret(None) == ""
    assert clean_secret(" \n") == ""
