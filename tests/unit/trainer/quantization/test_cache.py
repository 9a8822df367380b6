"""Jobs share entries of the cache of quantized models, and no fault of the cache harms a job."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.describe import BaseModel, inspect_base_model
from finetune_trainer.model.layout import read_base_layout
from finetune_trainer.model.safetensors_file import TensorWriter
from finetune_trainer.quantization.cache import LEFTOVER_SECONDS, ModelCache
from finetune_trainer.quantization.quantize import quantize_model
from finetune_trainer.sources.hub_model import HubModel
from finetune_trainer.sources.model import DirectoryModel
from finetune_trainer.telemetry.reporter import NullReporter
from finetune_trainer.workspace.digests import folder_digests
from finetune_trainer.workspace.layout import WorkspaceLayout
from transformers import AutoModelForCausalLM

from tests.support.processes.open_folder import open_folder
from tests.support.processes.user import message_as_user
from tests.support.servers.model_hub import COMMIT, REPOSITORY, ModelHub, serving
from tests.support.tiny_models import write_tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from finetune_trainer.quantization.builder import QuantizedModel


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model folder of several weight files."""
    folder = write_tiny_model(tmp_path_factory.mktemp("cache") / "base")
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="100KB")
    (folder / "model.safetensors").unlink()
    return folder


@pytest.fixture(scope="module")
def alone(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[QuantizedModel, dict[str, str]]:
    """Return the result and files of a job without a cache."""
    layout = WorkspaceLayout(tmp_path_factory.mktemp("alone"))
    return quantize_model(DirectoryModel(model), layout, NullReporter()), files_of(layout)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


def files_of(layout: WorkspaceLayout) -> dict[str, str]:
    """Return the digests of the files that TRAIN and MERGE read."""
    base = {f"base/{name}": digest for name, digest in folder_digests(layout.base).items()}
    return {
        **base,
        **{f"model/{name}": value for name, value in folder_digests(layout.quantized_model).items()},
    }


def run(model: Path, workspace: Path, cache: Path) -> tuple[QuantizedModel, WorkspaceLayout]:
    layout = WorkspaceLayout(workspace)
    return quantize_model(DirectoryModel(model), layout, NullReporter(), cache), layout


def entries(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir())


@pytest.fixture
def hub(model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelHub]:
    hub = ModelHub(model)
    with serving(hub) as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        yield hub


def from_hub(workspace: Path, cache: Path) -> QuantizedModel:
    layout = WorkspaceLayout(workspace)
    source = HubModel(REPOSITORY, "main", None, workspace / "download")
    return quantize_model(source, layout, NullReporter(), cache)


def test_the_second_job_downloads_metadata_only_and_gets_the_same_bytes(
    hub: ModelHub, alone: tuple[QuantizedModel, dict[str, str]], tmp_path: Path, cache: Path
) -> None:
    first = from_hub(tmp_path / "one", cache)
    asked = hub.weight_requests
    assert asked == len(list(hub.folder.glob("*.safetensors")))
    second = from_hub(tmp_path / "two", cache)
    assert hub.weight_requests == asked
    assert first == second
    assert (first.commit, first.digest) == (COMMIT, alone[0].digest)
    for workspace in ("one", "two"):
        layout = WorkspaceLayout(tmp_path / workspace)
        assert files_of(layout) == alone[1]
        assert layout.quantized_model.is_symlink()
        assert not layout.base.is_symlink()
    assert len(entries(cache)) == 1


def test_a_linked_model_loads_and_a_missing_cache_mount_is_reported(
    model: Path, tmp_path: Path, cache: Path
) -> None:
    _, layout = run(model, tmp_path / "workspace", cache)
    assert read_base_layout(layout).quantized
    AutoModelForCausalLM.from_pretrained(layout.quantized_model, device_map="cpu")
    cache.rename(tmp_path / "elsewhere")
    with pytest.raises(StageError, match="mount modelCache") as caught:
        read_base_layout(layout)
    assert caught.value.reason is Reason.QUANTIZATION_MISMATCH


def test_a_job_may_change_its_own_base_without_changing_the_entry(
    model: Path, tmp_path: Path, cache: Path
) -> None:
    """PREPARE writes the job's custom chat template to this folder."""
    _, layout = run(model, tmp_path / "one", cache)
    (layout.base / "chat_template.jinja").write_text("mine")
    _, other = run(model, tmp_path / "two", cache)
    assert (other.base / "chat_template.jinja").read_bytes() == (model / "chat_template.jinja").read_bytes()


def test_two_concurrent_jobs_succeed_and_create_one_entry(
    model: Path,
    alone: tuple[QuantizedModel, dict[str, str]],
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Jobs are processes. In one process, transformers' default type is shared while it builds a model.
    one_at_a_time = threading.Lock()

    def inspect(folder: Path, *, rehearsed: bool) -> BaseModel:
        with one_at_a_time:
            return inspect_base_model(folder, rehearsed=rehearsed)

    monkeypatch.setattr("finetune_trainer.quantization.quantize.inspect_base_model", inspect)
    meeting = threading.Barrier(2)
    results: dict[int, QuantizedModel] = {}

    class Meeting(DirectoryModel):
        def fetch(self, name: str, on_bytes: Callable[[int, int | None], None]) -> Path:
            meeting.wait(timeout=60)  # neither job has found an entry
            return super().fetch(name, on_bytes)

    def work(number: int) -> None:
        layout = WorkspaceLayout(tmp_path / str(number))
        results[number] = quantize_model(Meeting(model), layout, NullReporter(), cache)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[0] == results[1]
    assert len(entries(cache)) == 1
    for number in range(2):
        assert files_of(WorkspaceLayout(tmp_path / str(number))) == alone[1]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def add(path: Path) -> None:
    path.with_name("adapter_config.json").write_text("{}")


def spoil_manifest(path: Path) -> None:
    (path.parents[1] / "manifest.json").write_text('{"files": []')


@pytest.mark.parametrize(
    "damage",
    [truncate, flip, add, spoil_manifest, lambda path: path.unlink()],
    ids=lambda value: value.__name__,
)
def test_a_damaged_entry_is_not_used_but_rebuilt(
    model: Path,
    alone: tuple[QuantizedModel, dict[str, str]],
    tmp_path: Path,
    cache: Path,
    damage: Callable[[Path], None],
) -> None:
    first, _ = run(model, tmp_path / "one", cache)
    damage(min((cache / entries(cache)[0] / "model").glob("*.safetensors")))
    second, layout = run(model, tmp_path / "two", cache)
    assert second == first
    assert files_of(layout) == alone[1]
    # The first job's link leads to the rebuilt entry.
    assert files_of(WorkspaceLayout(tmp_path / "one")) == alone[1]
    assert len(entries(cache)) == 1


def test_a_restarted_job_does_not_trust_an_entry_that_was_damaged(
    model: Path, alone: tuple[QuantizedModel, dict[str, str]], tmp_path: Path, cache: Path
) -> None:
    run(model, tmp_path / "one", cache)
    flip(min((cache / entries(cache)[0] / "model").glob("*.safetensors")))
    _, layout = run(model, tmp_path / "one", cache)
    assert files_of(layout) == alone[1]


def failing_mkdir(code: int, allowed: Path) -> Callable[..., Any]:
    """Return a `Path.mkdir` that fails below the cache, like on a read-only volume."""
    from pathlib import Path as RealPath  # noqa: PLC0415 -- the class whose method is replaced

    make = RealPath.mkdir

    def mkdir(self: Path, *arguments: Any, **options: Any) -> None:
        if self.name.startswith(".nf4-") and self.is_relative_to(allowed):
            raise OSError(code, os.strerror(code), str(self))
        make(self, *arguments, **options)

    return mkdir


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_read_only_cache_is_used_only_if_it_has_the_model(
    model: Path,
    alone: tuple[QuantizedModel, dict[str, str]],
    tmp_path: Path,
    cache: Path,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with monkeypatch.context() as mounted, caplog.at_level(logging.WARNING):
        mounted.setattr("pathlib.Path.mkdir", failing_mkdir(code, cache))
        result, layout = run(model, tmp_path / "one", cache)
    assert result == alone[0]
    assert not layout.quantized_model.is_symlink()
    assert files_of(layout) == alone[1]
    assert "cannot be written" in caplog.text
    assert "in its workspace" in caplog.text
    run(model, tmp_path / "filler", cache)
    monkeypatch.setattr("pathlib.Path.mkdir", failing_mkdir(code, cache))
    _, layout = run(model, tmp_path / "two", cache)
    assert layout.quantized_model.is_symlink()


def test_a_cache_that_is_too_small_is_not_written(
    model: Path,
    alone: tuple[QuantizedModel, dict[str, str]],
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    usage = shutil.disk_usage(cache)
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage._replace(free=1000))
    with caplog.at_level(logging.WARNING):
        _, layout = run(model, tmp_path / "workspace", cache)
    assert files_of(layout) == alone[1]
    assert entries(cache) == []
    assert "1000 bytes are free" in caplog.text


def test_a_cache_that_fills_up_moves_its_finished_files_to_the_workspace(
    hub: ModelHub,
    alone: tuple[QuantizedModel, dict[str, str]],
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finish = TensorWriter.finish
    finished: list[Path] = []

    def filling(self: TensorWriter) -> None:
        if self._path.is_relative_to(cache) and finished:
            raise OSError(errno.ENOSPC, "No space left on device")
        finish(self)
        finished.append(self._path)

    monkeypatch.setattr(TensorWriter, "finish", filling)
    result = from_hub(tmp_path / "workspace", cache)
    assert result.digest == alone[0].digest
    assert files_of(WorkspaceLayout(tmp_path / "workspace")) == alone[1]
    assert entries(cache) == []
    first, second = sorted(path.name for path in hub.folder.glob("*.safetensors"))[:2]
    assert finished[0].name == first
    assert (hub.requests[first], hub.requests[second]) == (1, 1)


def test_the_folder_of_a_killed_job_is_reused_by_it_or_removed_later(
    model: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    fetched: list[str] = []

    class Dying(DirectoryModel):
        def fetch(self, name: str, on_bytes: Callable[[int, int | None], None]) -> Path:
            fetched.append(name)
            if len(fetched) == 2:
                raise Killed
            return super().fetch(name, on_bytes)

    def die() -> None:
        quantize_model(Dying(model), WorkspaceLayout(tmp_path / "one"), NullReporter(), cache)

    with pytest.raises(Killed):
        die()
    (left,) = entries(cache)
    assert left.endswith(".partial")
    run(model, tmp_path / "two", cache)
    assert len(entries(cache)) == 2  # it is recent, so its job can still run on another node
    shutil.rmtree(cache / next(name for name in entries(cache) if name != left))
    quantize_model(Dying(model), WorkspaceLayout(tmp_path / "one"), NullReporter(), cache)
    assert fetched.count(fetched[0]) == 1
    assert [name for name in entries(cache) if name.startswith(".")] == []

    fetched.clear()
    shutil.rmtree(cache / entries(cache)[0])
    shutil.rmtree(tmp_path / "one")
    with pytest.raises(Killed):
        die()
    real = time.time
    monkeypatch.setattr(
        "finetune_trainer.quantization.cache.time.time", lambda: real() + LEFTOVER_SECONDS + 60
    )
    run(model, tmp_path / "three", cache)
    assert [name for name in entries(cache) if name.startswith(".")] == []


def test_entries_can_be_read_by_other_users_with_any_umask(model: Path, tmp_path: Path, cache: Path) -> None:
    before = os.umask(0o077)
    try:
        run(model, tmp_path / "workspace", cache)
    finally:
        os.umask(before)
    entry = cache / entries(cache)[0]
    for path in (entry, *entry.rglob("*")):
        assert path.stat().st_mode & 0o444 == 0o444, path
        assert path.is_file() or path.stat().st_mode & 0o111 == 0o111, path


def test_a_workspace_without_symbolic_links_gets_a_copy(
    model: Path,
    alone: tuple[QuantizedModel, dict[str, str]],
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_arguments: Any, **_options: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("pathlib.Path.symlink_to", refuse)
    _, layout = run(model, tmp_path / "workspace", cache)
    assert not layout.quantized_model.is_symlink()
    assert files_of(layout) == alone[1]


def test_different_content_with_equal_names_sizes_and_times_is_another_model(
    model: Path, tmp_path: Path, cache: Path
) -> None:
    """Archives can set every time to one value. Two fine-tunes of one base must still differ."""
    first, second = (shutil.copytree(model, tmp_path / name) for name in ("a", "b"))
    weights = min(second.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-64:] = bytes(64)
    weights.write_bytes(content)
    for folder in (first, second):
        for path in folder.iterdir():
            os.utime(path, (0, 0))
    one, _ = run(first, tmp_path / "one", cache)
    two, _ = run(second, tmp_path / "two", cache)
    assert one.digest != two.digest
    assert len(entries(cache)) == 2


def test_adding_or_removing_a_cache_changes_no_byte(
    model: Path, alone: tuple[QuantizedModel, dict[str, str]], tmp_path: Path, cache: Path
) -> None:
    layout = WorkspaceLayout(tmp_path / "workspace")
    for folder in (None, cache, None):
        assert quantize_model(DirectoryModel(model), layout, NullReporter(), folder) == alone[0]
        assert files_of(layout) == alone[1]
    assert json.loads(layout.base_layout.read_text())["quantized"]


def test_a_cache_that_the_pods_user_cannot_search_is_not_used() -> None:
    with open_folder() as folder:

        def find() -> None:
            with ThreadPoolExecutor(1) as threads:
                assert ModelCache(folder, threads).find("nf4-0", "sha256:0") is None

        folder.chmod(0)
        assert message_as_user(find) == ""
