"""The GPU benchmark: its dry run goes through every measurement, and its parts decide as they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from benchmarks.gpu.carried import LOCKED, locked_versions, require_size, trim, unpack
from benchmarks.gpu.context import AbsentError, Context
from benchmarks.gpu.lines import Line, read_lines
from benchmarks.gpu.measurements import ranks
from benchmarks.gpu.plan import RANK_CASES, SECONDS, limit, measurements, missing_values, next_group
from benchmarks.gpu.report import tables
from benchmarks.gpu.shapes import DRY, REAL
from benchmarks.gpu.versions import below_minimum, minimum_versions
from tests.support.repository import ROOT

_MAY_BE_ABSENT = ("liger",)
"""Liger kernels are no requirement."""


@pytest.mark.slow
def test_a_dry_run_measures_every_case_with_all_its_values(tmp_path: Path) -> None:
    """A skipped measurement, a failed case and a line without one of its members each fail this test."""
    output = tmp_path / "results"
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--output", str(output)]
    ended = subprocess.run(
        command, cwd=ROOT, env=os.environ.copy(), capture_output=True, text=True, check=False
    )
    lines = read_lines((output / "lines.jsonl").read_text(encoding="utf-8").splitlines())
    assert ended.returncode == 0, [line.reason for line in lines if line.status == "failed"] or ended.stderr
    wanted = [(each.name, case) for each in measurements(DRY) for case in each.cases]
    assert [(line.measurement, line.case) for line in lines] == [(name, case.name) for name, case in wanted]
    for line, (_, case) in zip(lines, wanted, strict=True):
        if line.status == "absent":
            assert any(part in line.case for part in _MAY_BE_ABSENT), line.reason
            continue
        assert line.status == "measured", line.reason
        assert not missing_values(case, line.values)
    values = {line.case: line.values for line in lines}
    assert values["checkpoint"]["equal"] is True
    assert values["ladder"]["failedRungs"]
    ours = {name: found["dequantized"] for name, found in values.items() if " ours " in name}
    assert ours == {name: "dequantized" in name for name in ours}
    assert True in ours.values()
    assert values["stop"]["checkpointStep"] >= values["stop"]["stepAtSignal"]
    assert values["two replicas"]["processes"] == 2
    assert "calibration" in json.loads((output / "calibration.json").read_text(encoding="utf-8"))
    assert "its numbers mean nothing" in tables(lines)


def test_the_limits_of_all_measurements_fit_into_nine_minutes() -> None:
    on_one_gpu = [each for each in measurements(REAL) if each.gpus == 1]
    assert sum(each.seconds for each in on_one_gpu) <= SECONDS <= 540
    assert [each.number for each in measurements(REAL)] == list(range(1, 9))
    assert len(REAL.memory) == 12


def test_two_gpus_are_absent_on_a_machine_with_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    for case in RANK_CASES:
        with pytest.raises(AbsentError, match="two GPUs must be there, found 1"):
            ranks.run(case, Context(tmp_path, tmp_path, dry=False))
    assert tuple(ranks.CASES) == RANK_CASES


def test_a_measurement_ends_at_its_own_limit_or_at_the_end_of_all() -> None:
    one = measurements(REAL)[0]
    assert limit(one, begun=100, now=110, ends=1000) == one.seconds - 10
    assert limit(one, begun=100, now=110, ends=115) == 5
    assert limit(one, begun=100, now=500, ends=1000) == 0


def test_cases_of_one_process_run_together_until_another_one_follows() -> None:
    speed = measurements(REAL)[3].cases
    group = next_group(speed)
    assert {case.process for case in group} == {speed[0].process}
    assert speed[len(group)].process != speed[0].process
    assert next_group(()) == ()


def test_an_older_package_is_named_with_the_supported_version() -> None:
    minimums = minimum_versions(ROOT / "pyproject.toml")
    assert below_minimum({"torch": "2.13"}, {"torch": "2.11.0+cu130"}) == (
        "torch 2.11.0+cu130 (at least 2.13)",
    )
    assert below_minimum({"torch": "2.13"}, {"torch": "2.13.0", "other": "1"}) == ()
    assert {"torch", "transformers", "bitsandbytes"} <= minimums.keys()


def test_every_table_names_packages_that_are_too_old() -> None:
    old = ("torch 2.11.0 (at least 2.13)",)
    lines = [Line("memory", "a", "measured", 1.0, "", {"share": 0.5, "peakBytes": 1 << 30}, below=old)]
    lines.append(Line("stop", "stop", "timeout", 2.0, "too late", below=old))
    text = tables(lines)
    assert text.count("torch 2.11.0 (at least 2.13)") == 2
    assert "share 50.0%, peakBytes 1.00 GiB" in text
    assert "timeout: too late" in text


def test_a_line_that_was_cut_off_is_left_out() -> None:
    line = Line("memory", "a", "measured", 1.0, below=("torch 1",))
    assert read_lines([line.text(), line.text()[:20]]) == [line]


def _wheel(folder: Path, *libraries: str) -> Path:
    path = folder / "bitsandbytes-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name in ("bitsandbytes/__init__.py", *libraries):
            wheel.writestr(name, name * 100)
        wheel.writestr("bitsandbytes-1.dist-info/RECORD", "old")
    return path


def test_a_trimmed_wheel_has_one_gpu_library_and_a_record_of_what_is_left(tmp_path: Path) -> None:
    names = ("cuda128", "cuda130", "rocm70", "cpu")
    wheel = _wheel(tmp_path, *(f"bitsandbytes/libbitsandbytes_{name}.so" for name in names))
    before = wheel.stat().st_size
    assert trim(wheel) < before
    folder = unpack(tmp_path, tmp_path / "site")
    left = sorted(path.name for path in (folder / "bitsandbytes").iterdir())
    assert left == ["__init__.py", "libbitsandbytes_cpu.so", "libbitsandbytes_cuda130.so"]
    record = (folder / "bitsandbytes-1.dist-info/RECORD").read_text(encoding="utf-8")
    assert "cuda130.so,sha256=" in record
    assert "rocm" not in record


def test_a_wheel_without_the_library_of_the_machine_is_refused(tmp_path: Path) -> None:
    wheel = _wheel(tmp_path, "bitsandbytes/libbitsandbytes_cuda128.so")
    with pytest.raises(
        ValueError, match=r"must have bitsandbytes/libbitsandbytes_cuda130.so, found .*cuda128"
    ):
        trim(wheel)


def test_a_folder_above_the_limit_is_refused_with_its_largest_file(tmp_path: Path) -> None:
    (tmp_path / "small.whl").write_bytes(b"1" * 10)
    assert require_size(tmp_path, 10) == 10
    (tmp_path / "large.whl").write_bytes(b"1" * 20)
    with pytest.raises(
        ValueError, match=r"at most 29 bytes, found 30; the largest files are large.whl with 20"
    ):
        require_size(tmp_path, 29)


def test_every_carried_package_is_locked() -> None:
    lock = (ROOT / "requirements/trainer.txt").read_text(encoding="utf-8")
    assert locked_versions(lock, LOCKED)["transformers"]
    with pytest.raises(ValueError, match="the lock must have nothing-like-this"):
        locked_versions(lock, ["nothing-like-this"])
