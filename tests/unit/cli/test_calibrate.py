from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_cli.__main__ import main
from finetune_cli.calibrate import STATIC_TERMS, measured_runs
from finetune_cli.exit_codes import ExitCode
from finetune_operator.sizing.decision import decide_training
from finetune_operator.sizing.memory.calibration import NO_CALIBRATION, parse_calibration
from finetune_operator.sizing.memory.terms import Phase
from finetune_operator.status.reporting import estimated

from tests.support.repository import ROOT
from tests.support.sizing_jobs import feasible, make_request, on_node, product

CONTEXT = 400 << 20


def job(factor: float, length: int, **plan: Any) -> dict[str, Any]:
    """A finished job that measured `factor` times the estimated activations, and a context of 400 MiB."""
    estimate = feasible(
        decide_training(make_request(length=length), [on_node(product("NVIDIA L4"))])
    ).estimate
    static = sum(term.bytes for term in estimate.largest_terms() if term.name in STATIC_TERMS)
    allocated = round(static + factor * (estimate.peak_bytes - static))
    memory = {
        "allocatedBytes": allocated,
        "reservedBytes": round(allocated * 1.1),
        "deviceBytes": round(allocated * 1.1) + CONTEXT,
    }
    return {
        "kind": "FineTuneJob",
        "status": {
            "plan": {"memory": estimated(estimate), "stack": estimate.stack, "calibration": "none", **plan},
            "attempts": [{"stage": "Train", "outcome": "Succeeded", "memory": memory}],
        },
    }


def written(folder: Path, *jobs: dict[str, Any]) -> str:
    path = folder / "jobs.json"
    path.write_text(json.dumps({"kind": "List", "items": list(jobs)}), "utf-8")
    return str(path)


def test_a_run_on_another_rung_than_the_estimated_one_does_not_count() -> None:
    found = job(1.0, 512)
    assert len(list(measured_runs(found))) == 1
    found["status"]["attempts"][0]["rung"] = {"microBatchSize": 1, "gradientCheckpointing": True}
    assert list(measured_runs(found)) == []


def test_static_terms_are_the_optimizer_terms_that_no_length_changes() -> None:
    short, long = (make_request(length=length).ladder(None)[-1].estimate for length in (256, 2048))
    sizes = {term.name: term.bytes for term in short.terms if term.phase is Phase.OPTIMIZER and term.bytes}
    unchanged = {
        term.name
        for term in long.terms
        if term.phase is Phase.OPTIMIZER and sizes.get(term.name) == term.bytes
    }
    assert unchanged == STATIC_TERMS
    assert {term.name for term in long.largest_terms()} >= STATIC_TERMS


def test_terms_with_their_former_spelling_still_count_as_static() -> None:
    jobs = [job(1.1, length) for length in (512, 1024, 2048)]
    former = json.dumps(jobs).replace("quantization constants", "quantisation constants")
    former = former.replace("optimizer states", "optimiser states")
    assert former != json.dumps(jobs)
    found = [[run for _, run in measured_runs(one)] for one in json.loads(former)]
    assert found == [[run for _, run in measured_runs(one)] for one in jobs]


def test_constants_are_recovered_from_the_measurements_of_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path, *(job(1.2, length) for length in (512, 1024, 2048)))
    assert main(["calibrate", file]) == 0
    text = capsys.readouterr().out
    fitted = parse_calibration(yaml.safe_load(text)["calibration"])
    assert fitted.activation_factor == pytest.approx(1.2, abs=0.001)
    assert fitted.fragmentation == pytest.approx(0.1, abs=0.001)
    assert fitted.context_bytes == pytest.approx(CONTEXT, abs=16)
    assert fitted.version.startswith("runs-3-")
    values = tmp_path / "values.yaml"
    values.write_text(text, "utf-8")
    config = ROOT / "tests" / "support" / "configs" / "mistral-7b-instruct-v0.3.json"
    asked = ["plan", "--json", "--model", str(config), "--gpu", "L4"]
    assert main([*asked, "--calibration", str(values)]) == 0
    assert json.loads(capsys.readouterr().out)["calibration"] == fitted.version


def test_two_runs_are_too_few(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", written(tmp_path, job(1, 512), job(1, 1024))]) == ExitCode.USAGE
    assert "found 2" in capsys.readouterr().err


def test_runs_without_a_usable_measurement_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs that failed, ran on a CPU, or have an estimate with a calibration."""
    failed, on_cpu, corrected = job(1, 512), job(1, 512), job(1, 512, calibration="runs-3-0")
    failed["status"]["attempts"][0]["outcome"] = "Failed"
    on_cpu["status"]["attempts"][0]["memory"] = {}
    others: list[dict[str, Any]] = [
        {"kind": "FineTuneJob"},
        {"kind": "FineTuneJob", "status": {"plan": [], "attempts": [1]}},
    ]
    file = written(tmp_path, failed, on_cpu, corrected, *others)
    assert main(["calibrate", file]) == ExitCode.USAGE
    assert "found 0 among 5" in capsys.readouterr().err


def test_runs_of_several_stacks_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [job(1, length, stack=stack) for stack in ("a 1", "b 1") for length in (512, 1024, 2048)]
    file = written(tmp_path, *jobs)
    assert main(["calibrate", file]) == ExitCode.USAGE
    assert "a 1, b 1" in capsys.readouterr().err
    assert main(["calibrate", file, "--stack", "b 1", "--version", "mine"]) == 0
    document = yaml.safe_load(capsys.readouterr().out)["calibration"]
    assert parse_calibration(document) != NO_CALIBRATION
    assert document["version"] == "mine"


@pytest.mark.parametrize("option", ["--context", "--kubeconfig"])
def test_jobs_come_from_files_or_from_a_cluster(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", written(tmp_path, job(1.0, 512)), option, "x"]) == ExitCode.USAGE
    assert "must come from files or from a cluster" in capsys.readouterr().err


def test_standard_input_is_read_like_a_file() -> None:
    command = [sys.executable, "-m", "finetune_cli", "calibrate", "-"]
    done = subprocess.run(command, input="a: [", capture_output=True, check=False, text=True, timeout=60)
    assert (done.returncode, "/dev/stdin must be YAML" in done.stderr) == (ExitCode.USAGE, True)
