from __future__ import annotations

import pytest
from finetune_cli.exit_codes import ExitCode


def test_the_codes_are_those_that_scripts_rely_on() -> None:
    assert {code.name: int(code) for code in ExitCode} == {
        "SUCCESS": 0,
        "FAILED": 1,
        "DOES_NOT_FIT": 2,
        "USAGE": 64,
        "REJECTED": 65,
        "NO_INPUT": 66,
        "UNAVAILABLE": 69,
        "EXISTS": 73,
        "TIMEOUT": 75,
        "NO_PERMISSION": 77,
        "INTERRUPTED": 130,
        "BROKEN_PIPE": 141,
    }


@pytest.mark.parametrize("code", list(ExitCode))
def test_every_code_has_a_meaning(code: ExitCode) -> None:
    assert code.meaning.endswith(".")
