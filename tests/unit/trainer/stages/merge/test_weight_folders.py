"""Merged folders against peft's own merge, and the guards around them. The models are tiny and real."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer.contract.run_spec import RunSpec
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.layout import read_base_layout
from finetune_trainer.model.safetensors_file import read_header
from finetune_trainer.quantization import dequantize, low_rank, rounding
from finetune_trainer.quantization.original import KeptModel
from finetune_trainer.sources.model import DirectoryModel
from finetune_trainer.stages.merge import shards, weight_folders
from finetune_trainer.stages.merge.artifact import copy_small_files
from finetune_trainer.stages.merge.journal import FileRecord
from finetune_trainer.stages.merge.shards import write_index
from finetune_trainer.stages.merge.stage import merge
from finetune_trainer.stages.merge.update import AdapterUpdates
from finetune_trainer.stages.merge.weight_folders import WeightsKind, stored_layout, write_weights
from finetune_trainer.telemetry.reporter import NullReporter
from finetune_trainer.workspace.layout import WorkspaceLayout, read_marker, write_marker
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.support import workspaces
from tests.support.exact_models import dequantized, dequantized_model, projection, write_sparse_workspace
from tests.support.workspaces import SPEC_HASH, run_spec

IDS = torch.tensor([[3, 20, 41, 7, 99, 150, 4, 250]])
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "LoRA": ("mistral", {}),
    "tied": ("llama", {}),
    "rsLoRA": ("mistral", {"use_rslora": True}),
    "DoRA": ("mistral", {"use_dora": True}),
    "patterns": (
        "qwen3",
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"1.mlp.up_proj": 3, "v_proj": 5}},
    ),
    "some modules": ("qwen3", {"target_modules": ["q_proj", "down_proj"]}),
    "head": ("mistral", {"modules_to_save": ["lm_head"]}),
    "norms": ("llama", {"modules_to_save": ["norm", "input_layernorm"]}),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, torch.dtype], Path]:
    """Return a function that gives the folder of a prepared workspace and its base; each is made once."""
    made: dict[tuple[str, torch.dtype], Path] = {}

    def prepare(family: str, dtype: torch.dtype) -> Path:
        if (family, dtype) not in made:
            root = tmp_path_factory.mktemp(family)
            workspaces.write_base(root / "base", family, dtype, shard="60KB")
            workspaces.prepare(root / "workspace", root / "base")
            made[family, dtype] = root
        return made[family, dtype]

    return prepare


def adapt(workspace: WorkspaceLayout, size: float = 0.05, **settings: Any) -> Any:
    """Save a random adapter into the workspace; return peft's own merge into the dequantized model."""
    model = dequantized_model(workspace.quantized_model)
    torch.manual_seed(5)
    config = LoraConfig(
        **{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings}
    )
    adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            parameter.data += torch.randn_like(parameter) * size
        elif "magnitude" in name:
            parameter.data *= 1 + torch.rand_like(parameter) * size
    shutil.rmtree(workspace.adapter, ignore_errors=True)
    adapted.save_pretrained(str(workspace.adapter))
    return adapted


def run_of(workspace: WorkspaceLayout, output: Path, **changes: Any) -> RunSpec:
    run = run_spec(workspace.root, output)
    return run.model_copy(update={"output": run.output.model_copy(update=changes)})


def digest_of_model(workspace: WorkspaceLayout) -> str:
    marker = read_marker(workspace, "prepare", SPEC_HASH)
    assert marker is not None
    return str(marker["model"]["digest"])


def write(
    run: RunSpec, workspace: WorkspaceLayout, kind: WeightsKind = "Merged", digest: str = ""
) -> dict[str, FileRecord]:
    """Write an artifact's folder with its small files, below the run's destination."""
    folder = run.output.destination.path / kind
    written = write_weights(
        run,
        workspace,
        kind,
        digest or digest_of_model(workspace),
        folder,
        run.output.destination.path / "journal",
        lambda _done, _total: None,
    )
    layout = stored_layout(run, workspace, kind)
    copy_small_files(workspace.base, folder, run.output.dtype if kind == "Merged" else "BFloat16", [])
    write_index(folder, layout, resized=layout.bytes != read_base_layout(workspace).bytes)
    return written


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(IDS).logits
    return found


def workspace_of(root: Path, target: Path) -> WorkspaceLayout:
    shutil.copytree(root / "workspace", target)
    return WorkspaceLayout(target)


@pytest.mark.parametrize("variant", VARIANTS)
def test_merged_logits_equal_those_of_pefts_own_merge(
    prepared: Callable[[str, torch.dtype], Path], tmp_path: Path, variant: str
) -> None:
    """In float32 to its noise; in bf16 to one rounding, which moves no logit by more than 2 % of their spread."""
    family, settings = VARIANTS[variant]
    workspace = workspace_of(prepared(family, torch.float32), tmp_path / "workspace")
    adapted = adapt(workspace, **settings)
    expected = logits(adapted.merge_and_unload())
    base = logits(dequantized_model(workspace.quantized_model))
    for dtype, tolerance in (("AsBase", 1e-4), ("BFloat16", 0.02)):
        run = run_of(workspace, tmp_path / dtype, dtype=dtype)
        write(run, workspace)
        found = logits(AutoModelForCausalLM.from_pretrained(tmp_path / dtype / "Merged", dtype=torch.float32))
        spread = float(expected.std())
        assert float((found - expected).abs().max()) < tolerance * max(1.0, spread)
        assert float((found - base).abs().max()) > 10 * tolerance * spread, "the adapter must have an effect"


def test_the_warm_up_uses_every_loop_with_the_types_of_a_merge(
    prepared: Callable[[str, torch.dtype], Path], tmp_path: Path
) -> None:
    """An image ships what the warm-up compiles; a loop with other types would be compiled in each pod."""
    root = prepared("mistral", torch.bfloat16)
    workspace = workspace_of(root, tmp_path / "workspace")
    adapt(workspace, use_dora=True)
    KeptModel(DirectoryModel(root / "base"), workspace.original).keep_all(
        digest_of_model(workspace), lambda _done, _total: None
    )
    modules = (dequantize, low_rank, rounding)
    loops = [loop for module in modules for loop in vars(module).values() if hasattr(loop, "signatures")]
    for module in modules:
        module.warm_up()
    compiled = [len(loop.signatures) for loop in loops]
    assert sum(compiled) >= 6, "two loops of each module"
    for onto in ("TrainedWeights", "OriginalWeights"):
        write(run_of(workspace, tmp_path / onto, merge_onto=onto), workspace)
    assert [len(loop.signatures) for loop in loops] == compiled


def test_an_adapter_that_replaces_one_of_two_tied_tensors_is_refused(
    prepared: Callable[[str, torch.dtype], Path], tmp_path: Path
) -> None:
    workspace = workspace_of(prepared("llama", torch.bfloat16), tmp_path / "workspace")
    adapt(workspace)
    path = workspace.adapter / "adapter_model.safetensors"
    embedding = "base_model.model.model.embed_tokens.weight"
    shape = next(t.shape for f in read_base_layout(workspace).files for t in f.tensors if "embed" in t.name)
    save_file({**load_file(path), embedding: torch.ones(shape)}, path)
    config = workspace.adapter / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "modules_to_save": ["embed_tokens"]}))
    with pytest.raises(StageError, match="tie_word_embeddings") as caught:
        write(run_of(workspace, tmp_path / "out"), workspace)
    assert caught.value.reason is Reason.ARTIFACT_VERIFICATION_FAILED


def test_files_are_split_and_indexed_if_they_are_too_large(
    prepared: Callable[[str, torch.dtype], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = workspace_of(prepared("mistral", torch.bfloat16), tmp_path / "workspace")
    adapted = adapt(workspace)
    monkeypatch.setattr(weight_folders, "split_files", lambda layout: shards.split_files(layout, 50_000))
    write(run_of(workspace, tmp_path / "out"), workspace)
    folder = tmp_path / "out" / "Merged"
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    assert names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    assert len(names) > len(read_base_layout(workspace).files)
    index = json.loads((folder / shards.INDEX).read_text())
    assert set(index["weight_map"].values()) == set(names)
    found = logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    assert torch.allclose(found, logits(adapted.merge_and_unload()), atol=0.02)


def test_a_merge_into_the_original_weights_uses_those_that_prepare_kept(
    prepared: Callable[[str, torch.dtype], Path], tmp_path: Path
) -> None:
    root = prepared("mistral", torch.bfloat16)
    workspace = workspace_of(root, tmp_path / "workspace")
    adapt(workspace, size=0.002)
    run = run_of(workspace, tmp_path / "out", merge_onto="OriginalWeights")
    with pytest.raises(StageError, match="must hold the original weights"):
        write(run, workspace)
    KeptModel(DirectoryModel(root / "base"), workspace.original).keep_all(
        digest_of_model(workspace), lambda _done, _total: None
    )
    first = write(run, workspace)
    folder = tmp_path / "out" / "Merged"
    base, merged = (
        {name: value for path in where.glob("*.safetensors") for name, value in load_file(path).items()}
        for where in (root / "base", folder)
    )
    for module, update in AdapterUpdates(workspace.adapter).items():
        before = base[f"{module}.weight"].float()
        exact = torch.empty_like(before)
        update.apply(before.numpy(), 0, exact.numpy())
        assert projection(merged[f"{module}.weight"], before, exact) == pytest.approx(1.0, abs=0.1)
    original = AutoModelForCausalLM.from_pretrained(root / "base", dtype=torch.float32)
    expected = logits(PeftModel.from_pretrained(original, workspace.adapter))
    found = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "Merged", dtype=torch.float32))
    assert torch.allclose(found, expected, atol=0.02)
    again = write(run_of(workspace, tmp_path / "again", merge_onto="OriginalWeights"), workspace)
    assert again == first
    kept = next(workspace.original.glob("*.safetensors"))
    data = bytearray(kept.read_bytes())
    data[-1] ^= 1
    kept.unlink()  # it may be a link to the base's own file
    kept.write_bytes(data)
    with pytest.raises(StageError, match="original/ must have the digest"):
        write(run_of(workspace, tmp_path / "third", merge_onto="OriginalWeights"), workspace)


def test_the_base_as_trained_has_the_values_of_bitsandbytes_and_takes_the_adapter(
    prepared: Callable[[str, torch.dtype], Path], tmp_path: Path
) -> None:
    """In bf16, as a GPU dequantizes the weights in each step."""
    workspace = workspace_of(prepared("qwen3", torch.float32), tmp_path / "workspace")
    adapted = adapt(workspace)
    write(run_of(workspace, tmp_path / "out"), workspace, "BaseAsTrained")
    folder = tmp_path / "out" / "BaseAsTrained"
    state = {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}
    layout = read_base_layout(workspace)
    for file in layout.files:
        tensors = load_file(workspace.quantized_model / file.name)
        for tensor in file.tensors:
            if tensor.name.removesuffix(".weight") in layout.quantized:
                expected = dequantized(tensors, tensor.name, torch.bfloat16)
            else:
                expected = tensors[tensor.name]
            assert torch.equal(state[tensor.name], expected), tensor.name
    for name, module in adapted.named_modules():
        if hasattr(module, "base_layer"):
            plain = name.removeprefix("base_model.model.")
            module.base_layer.weight.data = state[f"{plain}.weight"].float()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = logits(PeftModel.from_pretrained(model, workspace.adapter))
    assert torch.allclose(found, logits(adapted), atol=1e-5)


def test_a_checkpoint_that_changed_after_prepare_is_refused(
    prepared: Callable[[str, torch.dtype], Path], tmp_path: Path
) -> None:
    workspace = workspace_of(prepared("llama", torch.bfloat16), tmp_path / "workspace")
    adapt(workspace)
    path, packed = next(
        (path, entry)
        for path in workspace.quantized_model.glob("*.safetensors")
        for entry in read_header(path)
        if entry.dtype == "U8" and entry.name.endswith(".weight")
    )
    data = bytearray(path.read_bytes())
    data[packed.start] ^= 1
    path.write_bytes(data)
    with pytest.raises(StageError, match=r"model/ must have the digest that PREPARE reported") as caught:
        write(run_of(workspace, tmp_path / "out"), workspace)
    assert caught.value.reason is Reason.QUANTIZATION_MISMATCH


def test_another_base_than_the_one_trained_on_is_refused(
    prepared: Callable[[str, torch.dtype], Path], tmp_path: Path
) -> None:
    workspace = workspace_of(prepared("llama", torch.bfloat16), tmp_path / "workspace")
    adapt(workspace)
    write_marker(workspace, "trained-base", SPEC_HASH, {"digest": "sha256:other"})
    with pytest.raises(StageError, match="trained on, sha256:other") as caught:
        write(run_of(workspace, tmp_path / "out"), workspace)
    assert caught.value.reason is Reason.QUANTIZATION_MISMATCH


def test_only_files_of_the_same_inputs_are_kept(
    prepared: Callable[[str, torch.dtype], Path], tmp_path: Path
) -> None:
    workspace = workspace_of(prepared("llama", torch.bfloat16), tmp_path / "workspace")
    adapt(workspace)
    run = run_of(workspace, tmp_path / "out")
    first = write(run, workspace)
    folder = tmp_path / "out" / "Merged"
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    lost = sorted(times)[1]
    (folder / lost).unlink()
    assert write(run, workspace) == first
    changed = {name for name, time in times.items() if (folder / name).stat().st_mtime_ns != time}
    assert changed == {lost}
    adapt(workspace, size=0.1)
    assert write(run, workspace) != first


def test_a_merge_into_the_original_weights_is_proven_and_published(
    workspace: Path, trained_llama: Path, tmp_path: Path
) -> None:
    layout = WorkspaceLayout(workspace)
    kept = KeptModel(DirectoryModel(trained_llama / "base"), layout.original)
    kept.keep_all(digest_of_model(layout), lambda _done, _total: None)
    run = run_of(
        layout, tmp_path / "out", merge_onto="OriginalWeights", artifacts=("Merged", "BaseAsTrained")
    )
    result = merge(run, NullReporter())
    assert result.verification is not None
    assert result.verification.surviving_update == pytest.approx(1.0, abs=0.01)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    tensors = manifest["merge"]["tensors"]
    assert tensors.keys() == {f"{module}.weight" for module in read_base_layout(layout).quantized}
    weakest = result.verification.weakest_tensor
    assert weakest is not None
    assert tensors[weakest]["projection"] == result.verification.weakest_survival
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "base-as-trained",
        "manifest.json",
        "merged",
        "provenance",
        "report",
    ]


def test_a_disk_that_becomes_full_leaves_nothing_and_the_next_run_succeeds(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(WorkspaceLayout(workspace), tmp_path / "out")
    write_at, count = os.pwrite, iter(range(1000))

    def pwrite(descriptor: int, data: bytes, position: int) -> int:
        if next(count) > 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_at(descriptor, data, position)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(StageError, match=r"No space left on device at .*merged; free space") as caught:
        merge(run, NullReporter())
    assert caught.value.reason is Reason.DESTINATION_UNWRITABLE
    assert list((tmp_path / "out").iterdir()) == []
    monkeypatch.undo()
    assert merge(run, NullReporter()).artifacts


_KILLS = """
import hashlib, os, pathlib, random, signal, sys
import torch
torch.set_num_threads(1)
from finetune_trainer.stages.merge.stage import merge
from finetune_trainer.telemetry.reporter import NullReporter
from tests.support.workspaces import run_spec

root, kills = pathlib.Path(sys.argv[1]), int(sys.argv[2])
random.seed(int(sys.argv[3]))

class Watch(NullReporter):
    # Kills the process at one of its reports. Threads are in the middle of writing then.
    def __init__(self, last):
        self.activities, self.last = [], last

    def update(self, activity, *_, **__):
        self.activities.append(activity)
        if len(self.activities) == self.last:
            os.kill(os.getpid(), signal.SIGKILL)

def attempt(name, last=None):
    child = os.fork()
    if child == 0:
        watch = Watch(last)
        merge(run_spec(root / "workspace", root / name), watch)
        (root / "activities").write_text(" ".join(watch.activities))
        os._exit(0)
    return os.waitpid(child, 0)[1]

assert attempt("undisturbed") == 0
activities = (root / "activities").read_text().split()
(root / "workspace" / "markers" / "merge.json").unlink()
killed = kept = 0
for number in range(kills):
    reports = len(activities) if number < 2 else activities.index("Verifying")
    status = attempt("killed", random.randint(1, reports))
    if os.WIFEXITED(status):
        break
    killed += 1
    kept += len(list((root / "killed").glob(".finetune-staging/journal/merged/*.json")))
    assert not (root / "killed" / "manifest.json").exists()
assert attempt("killed") == 0

def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        # Both tell of the time of publication.
        if path.is_file() and path.name != "manifest.json" and path.parent.name != "provenance"
    }

assert digests(root / "killed") == digests(root / "undisturbed")
print(killed, kept)
"""


@pytest.mark.slow
def test_killed_merges_finish_with_the_digests_of_an_undisturbed_one(
    trained_llama: Path, tmp_path: Path
) -> None:
    """15 kills: two at random reports of the whole stage, the others while weights are written."""
    shutil.copytree(trained_llama / "workspace", tmp_path / "workspace")
    done = subprocess.run(
        [sys.executable, "-c", _KILLS, str(tmp_path), "15", "4"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    killed, kept = (int(number) for number in done.stdout.split()[-2:])
    assert killed >= 10, "a try that finds finished files has fewer reports, and may end before its kill"
    assert kept > 0, "at least one try must have found finished files"


_MEASURE = """
import pathlib, sys
from finetune_trainer.stages.merge import stage
from finetune_trainer.stages.merge.update import AdapterUpdates
from finetune_trainer.stages.merge.weight_folders import write_weights
from finetune_trainer.workspace.layout import WorkspaceLayout
from tests.support.workspaces import run_spec

root = pathlib.Path(sys.argv[1])
written = write_weights(
    run_spec(root, root / "out"), WorkspaceLayout(root), "Merged", sys.argv[2],
    root / "out" / "merged", root / "out" / "journal", lambda _done, _total: None,
)
status = pathlib.Path("/proc/self/status").read_text()
peak = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
print(int(peak) * 1024, sum(record.bytes for record in written.values()))
"""


@pytest.mark.full
@pytest.mark.slow
def test_a_checkpoint_of_eight_gigabytes_needs_little_memory(tmp_path: Path) -> None:
    """One file of the base, with an embedding of 1 GB; its packed weights are holes in a sparse file."""
    digest = write_sparse_workspace(WorkspaceLayout(tmp_path), linears=14, width=16384, vocabulary=32768)
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(tmp_path), digest], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    peak, size = map(int, done.stdout.split())
    assert size > 8e9
    assert peak < 1.5e9
    names = sorted(path.name for path in (tmp_path / "out" / "merged").glob("*.safetensors"))
    assert names == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    shutil.rmtree(tmp_path / "out")
