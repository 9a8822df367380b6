"""The cache of compiled kernels: what the next run gets, and that nothing broken, foreign or too large is used."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.stages.train import compile_cache as module
from finetune_trainer.stages.train.compile_cache import (
    KEPT,
    LEFTOVER_SECONDS,
    CompileCache,
    archive_name,
    compile_cache,
    prune,
    writable_folder,
)
from finetune_trainer.termination import Terminated

from tests.support.repository import ROOT

_NAME = "sm90-torch2.15.0.kernels"


def _compile(name: str = "a/kernel.cubin", text: str = "code", variable: str = "TRITON_CACHE_DIR") -> None:
    """Write a file where the compiler of this process writes."""
    path = Path(os.environ[variable]) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _run(folder: Path, *names: str) -> list[str]:
    """Compile `names`, and return what was compiled before."""
    with compile_cache(folder, _NAME):
        root = Path(os.environ["TRITON_CACHE_DIR"])
        found = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
        for name in names:
            _compile(name)
    return found


def test_the_next_run_finds_what_was_compiled(tmp_path: Path) -> None:
    assert _run(tmp_path / "compiled", "a/kernel.cubin", "b/launcher.so") == []
    assert _run(tmp_path / "compiled") == ["a/kernel.cubin", "b/launcher.so"]


def test_both_compilers_have_a_folder_that_ends_with_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", "/somewhere")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    with compile_cache(tmp_path, _NAME):
        local = Path(os.environ["TRITON_CACHE_DIR"]).parent
        _compile(variable="TORCHINDUCTOR_CACHE_DIR")
        assert local.is_dir()
        assert not (tmp_path / _NAME).exists()
    assert os.environ["TRITON_CACHE_DIR"] == "/somewhere"
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    assert not local.exists()
    content = (tmp_path / _NAME).read_bytes()[32:]
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        assert archive.getnames() == ["inductor/a/kernel.cubin"]


def test_a_run_that_fails_keeps_what_it_compiled(tmp_path: Path) -> None:
    def fail() -> None:
        with compile_cache(tmp_path, _NAME):
            _compile()
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    assert _run(tmp_path) == ["a/kernel.cubin"]


def test_a_save_that_a_signal_cuts_off_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_arguments: Any) -> None:
        raise Terminated("SIGTERM")

    monkeypatch.setattr(shutil, "copyfileobj", stop)
    monkeypatch.setenv("TRITON_CACHE_DIR", "/somewhere")
    with pytest.raises(Terminated):
        _run(tmp_path / "compiled", "a/kernel.cubin")
    assert list((tmp_path / "compiled").iterdir()) == []
    assert os.environ["TRITON_CACHE_DIR"] == "/somewhere"


def test_nothing_new_writes_nothing(tmp_path: Path) -> None:
    _run(tmp_path, "a/kernel.cubin")
    before = (tmp_path / _NAME).stat()
    _run(tmp_path)
    after = (tmp_path / _NAME).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_device_that_compiles_nothing_has_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", "/somewhere")
    with compile_cache(tmp_path, None) as cache:
        assert cache is None
        assert os.environ["TRITON_CACHE_DIR"] == "/somewhere"
    assert list(tmp_path.iterdir()) == []


def test_jobs_that_end_together_leave_one_whole_archive(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for number, folder in enumerate(folders):
        (folder / "triton").mkdir(parents=True)
        (folder / "triton" / f"{number}.cubin").write_text("code")
    caches = [CompileCache(tmp_path / "shared" / _NAME, folder) for folder in folders]
    assert [cache.restore() for cache in caches] == [0, 0]
    assert [cache.save() for cache in caches] == [True, True]
    assert [path.name for path in (tmp_path / "shared").iterdir()] == [_NAME]
    assert _run(tmp_path / "shared") == ["1.cubin"]


@pytest.mark.parametrize("length", [0, 100, 700])
def test_an_archive_that_was_cut_off_is_not_used_and_replaced(tmp_path: Path, length: int) -> None:
    _run(tmp_path, "a/kernel.cubin", "b/kernel.cubin")
    whole = (tmp_path / _NAME).read_bytes()
    (tmp_path / _NAME).write_bytes(whole[:length])
    assert _run(tmp_path, "c/kernel.cubin") == []
    assert _run(tmp_path) == ["c/kernel.cubin"]


def test_an_archive_with_one_changed_byte_of_code_is_not_used(tmp_path: Path) -> None:
    _run(tmp_path, "a/kernel.cubin")
    whole = (tmp_path / _NAME).read_bytes()
    (tmp_path / _NAME).write_bytes(whole.replace(b"code", b"cope"))
    assert _run(tmp_path) == []


def test_an_archive_of_good_files_is_used(tmp_path: Path) -> None:
    """The tests of bad members differ from this one in one member."""
    _write(tmp_path / _NAME, _member("triton/a"), _member("triton/b"))
    assert _run(tmp_path) == ["a", "b"]


def _write(path: Path, *members: tarfile.TarInfo) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(b"x" * member.size) if member.isreg() else None)
    path.write_bytes(hashlib.sha256(content.getvalue()).digest() + content.getvalue())
    path.chmod(0o600)


def _member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.linkname, found.size = kind, target, 1 if kind == tarfile.REGTYPE else 0
    return found


@pytest.mark.parametrize(
    "member",
    [
        _member("../outside"),
        _member("triton/../../outside"),
        _member("/etc/outside"),
        _member("elsewhere/file"),
        _member("triton/link", tarfile.SYMTYPE, "/etc/passwd"),
        _member("triton/link", tarfile.LNKTYPE, "triton/a"),
        _member("triton/pipe", tarfile.FIFOTYPE),
    ],
)
def test_an_archive_with_anything_but_files_of_the_compilers_is_not_used(
    tmp_path: Path, member: tarfile.TarInfo
) -> None:
    folder = tmp_path / "compiled"
    folder.mkdir()
    _write(folder / _NAME, _member("triton/a"), member)
    assert _run(folder) == []
    assert not (tmp_path / "outside").exists()


def test_an_archive_that_others_may_write_is_not_used(tmp_path: Path) -> None:
    _run(tmp_path, "a/kernel.cubin")
    (tmp_path / _NAME).chmod(0o660)
    assert _run(tmp_path) == ["a/kernel.cubin"]
    (tmp_path / _NAME).chmod(0o602)
    assert _run(tmp_path) == []


def test_an_archive_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _run(tmp_path, "a/kernel.cubin")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert _run(tmp_path) == []


def test_a_link_in_the_place_of_an_archive_is_not_followed(tmp_path: Path) -> None:
    _run(tmp_path / "mine", "a/kernel.cubin")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / _NAME).symlink_to(tmp_path / "mine" / _NAME)
    assert _run(tmp_path / "shared") == []


@pytest.mark.parametrize(("largest", "most"), [(3, 100), (100, 1)])
def test_an_archive_beyond_the_limits_is_neither_written_nor_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, largest: int, most: int
) -> None:
    _run(tmp_path / "before", "a", "b")
    monkeypatch.setattr(module, "LARGEST", largest)
    monkeypatch.setattr(module, "MOST_FILES", most)
    assert _run(tmp_path / "before") == []
    _run(tmp_path / "after", "a", "b")
    assert not list((tmp_path / "after").glob("*"))


def test_a_folder_that_cannot_be_written_ends_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert _run(tmp_path / "file", "a") == []


def test_old_archives_and_leftovers_go(tmp_path: Path) -> None:
    now = time.time()
    for age in range(KEPT + 2):
        path = tmp_path / f"sm{age}.kernels"
        path.touch()
        os.utime(path, (now - age, now - age))
    for name, old in ((".a.partial", 10.0), (".b.partial", LEFTOVER_SECONDS + 10.0)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (now - old, now - old))
    prune(tmp_path, now)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".a.partial",
        *(f"sm{age}.kernels" for age in range(KEPT)),
    ]


def test_archives_are_in_the_claim_of_the_models_or_else_in_the_workspace(tmp_path: Path) -> None:
    own, shared, file = tmp_path / "own", tmp_path / "claim" / "compiled", tmp_path / "file"
    file.touch()
    assert writable_folder(None, own) == own
    assert writable_folder(str(shared), own) == shared
    assert shared.is_dir()
    assert writable_folder(str(file / "compiled"), own) == own


def test_a_shared_folder_that_only_others_may_write_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)
    assert writable_folder(str(tmp_path), tmp_path / "own") == tmp_path / "own"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"child_paths": []}'])
def test_an_archive_with_a_list_that_cannot_be_read_is_not_used(tmp_path: Path, text: str) -> None:
    with compile_cache(tmp_path, _NAME):
        _compile("a/__grp__kernel.json", text)
    assert _run(tmp_path) == []


def test_a_list_never_names_files_outside_of_its_folder(tmp_path: Path) -> None:
    with compile_cache(tmp_path, _NAME):
        _compile("a/__grp__kernel.json", '{"child_paths": {"../x.so": "/etc/x.so", "y.so": "/etc/y.so"}}')
    with compile_cache(tmp_path, _NAME):
        folder = Path(os.environ["TRITON_CACHE_DIR"]) / "a"
        found = json.loads((folder / "__grp__kernel.json").read_text(encoding="utf-8"))["child_paths"]
        assert found == {"../x.so": str(folder / "x.so"), "y.so": str(folder / "y.so")}


_TRITON = """
import sys
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from finetune_trainer.model.fused.triton_kernels import _gate_forward
from finetune_trainer.stages.train.compile_cache import compile_cache

chosen = {"block": 1024}
signature = {name: "constexpr" if name == "block" else "i32" if name == "count" else "*bf16" for name in _gate_forward.arg_names}
with compile_cache(Path(sys.argv[1]), "one.kernels") as cache:
    before = {path: path.stat().st_mtime_ns for path in cache._files().values()}
    triton.compile(ASTSource(fn=_gate_forward, signature=signature, constexprs=chosen), target=GPUTarget("cuda", 90, 32))
    after = {path: path.stat().st_mtime_ns for path in cache._files().values()}
    print(len(before), before == after)
"""


@pytest.mark.slow
def test_triton_compiles_nothing_that_an_earlier_process_has_compiled(tmp_path: Path) -> None:
    """Triton has no GPU here, and compiles for one of capability 9.0."""
    script = tmp_path / "compile_one.py"
    script.write_text(_TRITON, encoding="utf-8")
    found = []
    for _ in range(2):
        command = [sys.executable, str(script), str(tmp_path / "compiled")]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        found.append(ended.stdout.split())
    assert found[0] == ["0", "False"]
    assert int(found[1][0]) > 0
    assert found[1][1] == "True"


def test_the_name_says_the_gpu_and_the_versions() -> None:
    versions = {"torch": "2.15.0+cu132", "triton": "3.9.0", "cuda": "13.2/odd"}
    assert archive_name((9, 0), versions) == "sm90-torch2.15.0+cu132-triton3.9.0-cuda13.2_odd.kernels"
    assert archive_name((10, 0), versions) != archive_name((9, 0), versions)
