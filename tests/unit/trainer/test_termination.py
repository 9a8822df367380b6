from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from finetune_trainer.contract.exit_codes import ExitCode
from finetune_trainer.termination import TERMINATION, Terminated, Termination, raise_on_termination

from tests.support.repository import ROOT
from tests.support.workspaces import run_spec

_HOOK = ROOT / "tests" / "support" / "processes" / "stopped_at_import"


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    raise_on_termination()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_raised_and_its_name_stays_known(number: signal.Signals) -> None:
    raise_on_termination()
    with pytest.raises(Terminated, match=number.name):
        os.kill(os.getpid(), number)
    assert TERMINATION.received == number.name
    with pytest.raises(Terminated, match=number.name):
        TERMINATION.check()


def test_a_remembered_signal_is_raised_where_the_work_begins() -> None:
    stop = Termination()
    stop.listen()
    stop.check()
    stop.remember()
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(Terminated, match="SIGTERM"), stop.raised():
        raise AssertionError("must not be reached")
    os.kill(os.getpid(), signal.SIGTERM)  # only remembered after the block


def test_a_signal_before_the_imports_is_raised_after_them() -> None:
    stop = Termination()
    stop.begin()
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Terminated, match="SIGTERM"):
        stop.listen()
    stop.listen()
    assert stop.received is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "module", "function", "has_result"),
    [
        # Before the run spec is read there is no result, but the exit code tells.
        ("train", "argparse", None, False),
        ("prepare", "pydantic", None, False),
        ("prepare", "torch", None, True),
        # Python turns any exception in this method, while a class is made, into a RuntimeError.
        ("merge", "torch", "functools.__set_name__", True),
    ],
)
def test_a_stop_during_the_imports_of_a_stage_is_an_interruption(
    tmp_path: Path, command: str, module: str, function: str | None, *, has_result: bool
) -> None:
    """Without the stop, the stage would fail: its workspace is empty, and its model does not exist."""
    run, message = tmp_path / "run.json", tmp_path / "message.json"
    run.write_text(run_spec(tmp_path / "workspace", tmp_path / "output").model_dump_json(by_alias=True))
    environment = {**os.environ, "FINETUNE_TEST_STOP_AT": module}
    environment["PYTHONPATH"] = os.pathsep.join([str(_HOOK), *filter(None, sys.path)])
    if function is not None:
        environment["FINETUNE_TEST_STOP_IN"] = function
    arguments = [command, "--run", str(run), "--termination-message", str(message)]
    ended = subprocess.run(
        [sys.executable, "-m", "finetune_trainer", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == ExitCode.INTERRUPTED, ended.stderr
    assert "Traceback" not in ended.stderr + ended.stdout
    assert "outcome=Interrupted" in ended.stderr
    assert message.exists() is has_result
    if has_result:
        result = json.loads(message.read_bytes())
        assert (result["outcome"], result["reason"]) == ("Interrupted", "Interrupted")
        assert "SIGTERM" in result["message"]
