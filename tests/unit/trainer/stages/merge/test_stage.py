"""MERGE on a tiny trained model: the artifact, its verification, and cases without publication."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from finetune_trainer.contract.run_spec import Signing
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.artifact_size import artifact_bytes
from finetune_trainer.model.layout import read_base_layout
from finetune_trainer.model.safetensors_file import read_header
from finetune_trainer.stages.merge import proof
from finetune_trainer.stages.merge.stage import merge
from finetune_trainer.stages.prepare.stage import prepare
from finetune_trainer.stages.train.stage import train
from finetune_trainer.telemetry.reporter import NullReporter
from finetune_trainer.workspace.completed import published_results
from finetune_trainer.workspace.destination import folder_bytes, publishing_alone
from finetune_trainer.workspace.digests import digest_of_files, folder_digests
from finetune_trainer.workspace.layout import WorkspaceLayout, read_marker, write_marker
from jsonschema import Draft202012Validator
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tests.support import workspaces
from tests.support.exact_models import dequantized_model
from tests.support.repository import ROOT
from tests.support.tiny_models import CHATML
from tests.support.workspaces import SPEC_HASH, run_spec

if TYPE_CHECKING:
    from collections.abc import Callable

    from finetune_trainer.contract.run_spec import RunSpec

_MANY = 40
_LORA = {"rank": 4, "alpha": 8, "dropout": 0, "targetModules": "AllLinear", "variant": "Standard"}


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
    return tensors


def test_the_artifact_has_the_form_of_the_base_and_the_trained_weights(
    workspace: Path, trained_llama: Path, tmp_path: Path
) -> None:
    """Files, tensors and types equal the base's, small files byte by byte, and the verification succeeds."""
    output = tmp_path / "output"
    run = run_spec(workspace, output)
    result = merge(run, NullReporter()).document()
    schema = json.loads((ROOT / "contract" / "result.schema.json").read_text())
    Draft202012Validator({**schema, **schema["$defs"]["merge"]}).validate(result)
    assert result["verification"]["klDivergence"] <= 0.01
    merged, base = output / "merged", trained_llama / "base"
    for path in base.iterdir():
        if path.suffix == ".safetensors":
            found = [(entry.name, entry.dtype, entry.shape) for entry in read_header(merged / path.name)]
            assert found == [(entry.name, entry.dtype, entry.shape) for entry in read_header(path)]
        else:
            assert (merged / path.name).read_bytes() == path.read_bytes()
    assert {path.name for path in merged.iterdir()} == {path.name for path in base.iterdir()} | {"README.md"}
    assert "quantization_config" not in json.loads((merged / "config.json").read_text())
    assert sorted(path.name for path in output.iterdir()) == [
        "adapter",
        "manifest.json",
        "merged",
        "provenance",
        "report",
    ]
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["specHash"] == SPEC_HASH
    assert manifest["results"]["merge"] == result
    for artifact in result["artifacts"]:
        folder = output / artifact["kind"].lower()
        digests = folder_digests(folder)
        assert artifact["digest"] == digest_of_files(digests)
        assert artifact["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
        for name, digest in digests.items():
            assert manifest["files"][f"{folder.name}/{name}"]["digest"] == digest
    assert read_marker(WorkspaceLayout(workspace), "merge", SPEC_HASH) == result
    published = published_results(run)
    assert published is not None
    assert published.document() == manifest["results"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "dtype", "variant", "targets"),
    [
        ("llama", torch.bfloat16, "RankStabilized", "AllLinear"),
        ("mistral", torch.float16, "DoRA", "AllLinear"),
        ("qwen3", torch.float32, "Standard", "AttentionOnly"),
    ],
)
def test_merged_weights_equal_the_adapter_on_the_dequantized_weights(
    tmp_path: Path, family: str, dtype: torch.dtype, variant: str, targets: str
) -> None:
    """The reference is peft's merge into the dequantized model in float32, rounded to the base's type."""
    workspaces.write_base(tmp_path / "base", family, dtype)
    layout = workspaces.prepare(tmp_path / "workspace", tmp_path / "base")
    lora = {**_LORA, "variant": variant, "targetModules": targets}
    run = writing(run_spec(tmp_path / "workspace", tmp_path / "output", lora=lora), "AsBase")
    train(run, NullReporter())
    merge(run, NullReporter())
    model = dequantized_model(layout.quantized_model)
    reference = PeftModel.from_pretrained(model, layout.adapter).merge_and_unload().state_dict()
    merged = _weights(tmp_path / "output" / "merged")
    tolerance = {torch.bfloat16: 2**-8, torch.float16: 2**-10, torch.float32: 1e-5}[dtype]
    for name in read_base_layout(layout).quantized:
        weight = merged[f"{name}.weight"]
        assert weight.dtype == dtype
        assert torch.allclose(weight.float(), reference[f"{name}.weight"], rtol=tolerance, atol=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "expected"), [("BFloat16", {"BF16"}), ("AsBase", {"F32"})])
def test_the_artifact_has_the_type_that_the_job_asks_for(
    tmp_path: Path, dtype: str, expected: set[str]
) -> None:
    """The base is in 32 bits. Its trained values are those of bf16, so both artifacts hold the same model."""
    workspaces.write_base(tmp_path / "base", "llama", torch.float32)
    workspaces.prepare(tmp_path / "workspace", tmp_path / "base")
    run = writing(run_spec(tmp_path / "workspace", tmp_path / "output"), dtype)
    train(run, NullReporter())
    result = merge(run, NullReporter())
    merged = tmp_path / "output" / "merged"
    entries = [entry for path in merged.glob("*.safetensors") for entry in read_header(path)]
    assert {entry.dtype for entry in entries} == expected
    loaded = AutoModelForCausalLM.from_pretrained(merged)
    assert {str(parameter.dtype) for parameter in loaded.parameters()} == {
        "torch.bfloat16" if dtype == "BFloat16" else "torch.float32"
    }
    assert result.verification is not None
    assert result.verification.kl_divergence <= 0.01


def test_both_artifacts_stop_where_the_answers_end(workspace: Path, tmp_path: Path) -> None:
    """The base would stop at another token only."""
    for name in ("config.json", "generation_config.json"):
        path = WorkspaceLayout(workspace).base / name
        path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": 0}))
    merge(run_spec(workspace, tmp_path / "output"), NullReporter())
    for folder in ("merged", "adapter"):
        generation = GenerationConfig.from_pretrained(tmp_path / "output" / folder)
        assert generation.eos_token_id == [0, 2]
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "output" / folder)
        assert tokenizer.convert_tokens_to_ids("<|im_end|>") == 2
        assert tokenizer.chat_template == workspaces.TEMPLATE
    assert AutoModelForCausalLM.from_pretrained(
        tmp_path / "output" / "merged"
    ).generation_config.eos_token_id == [0, 2]


@pytest.mark.model
def test_the_demos_model_without_its_stop_token_makes_an_artifact_that_stops(
    make_run: Callable[..., RunSpec], run_document: dict[str, Any], real_model: Path, tmp_path: Path
) -> None:
    """Neither config of the base names the token that ends an answer, and the job brings the template."""
    run = make_run(
        model={
            "source": {"kind": "Directory", "path": str(base_variant(real_model, tmp_path / "base"))},
            "chatTemplatePath": str(write_template(tmp_path / "chatml.jinja")),
            "chatTemplateArguments": {},
        },
        training={
            **run_document["training"],
            "maximumSteps": 1,
            "effectiveBatchSize": 1,
            "microBatchSize": 1,
            "learningRate": 1e-5,
        },
        evaluation={"maximumRows": 2},
    )
    prepared = prepare(run, NullReporter()).prepare
    assert prepared is not None
    assert [token.text for token in prepared.dataset.end_tokens or ()] == ["<|im_end|>"]
    train(run, NullReporter())
    merge(run, NullReporter())
    merged = run.output.destination.path / "merged"
    tokenizer = AutoTokenizer.from_pretrained(merged)
    model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    question = [{"role": "user", "content": "Is the sky blue? Answer yes or no."}]
    ids: Any = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    answer = model.generate(ids, max_new_tokens=_MANY, do_sample=False)[0, ids.shape[1] :].tolist()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert len(answer) < _MANY
    assert answer.index(end) == len(answer) - 1
    longer = model.generate(ids, max_new_tokens=len(answer) + 4, do_sample=False, eos_token_id=0)
    assert longer.shape[1] == ids.shape[1] + len(answer) + 4, (
        "the base's own stop token does not end the answer"
    )


def base_variant(model: Path, folder: Path) -> Path:
    """Link the files of `model`; the copy stops at token 0 only and has no chat template."""
    folder.mkdir()
    for path in model.iterdir():
        if path.name != "chat_template.jinja":
            (folder / path.name).symlink_to(path)
    for name, changes in (
        ("config.json", {"eos_token_id": 0}),
        ("generation_config.json", {"eos_token_id": 0}),
        ("tokenizer_config.json", {"eos_token": "<|endoftext|>", "chat_template": None}),
    ):
        document = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_text(json.dumps({**document, **changes}))
    return folder


def write_template(path: Path) -> Path:
    path.write_text(CHATML, encoding="utf-8")
    return path


def writing(run: RunSpec, dtype: str) -> RunSpec:
    return run.model_copy(update={"output": run.output.model_copy(update={"dtype": dtype})})


@pytest.mark.slow
def test_the_artifact_loads_without_bitsandbytes(workspace: Path, tmp_path: Path) -> None:
    merge(run_spec(workspace, tmp_path / "output"), NullReporter())
    blocked = tmp_path / "blocked" / "bitsandbytes"
    blocked.mkdir(parents=True)
    (blocked / "__init__.py").write_text("raise ImportError('not here')\n")
    code = (
        "import sys, torch, transformers\n"
        "model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "ids = tokenizer('say 1', return_tensors='pt')['input_ids']\n"
        "print(model.dtype, bool(torch.isfinite(model(ids).logits).all()))\n"
        "try:\n    import bitsandbytes\nexcept ImportError:\n    print('absent')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "output" / "merged")],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(blocked.parent)},
    )
    assert done.stdout.split() == ["torch.bfloat16", "True", "absent"]


def test_a_second_run_returns_the_published_result_and_changes_nothing(
    workspace: Path, tmp_path: Path
) -> None:
    """The manifest is enough, even if the workspace's marker is lost."""
    run = run_spec(workspace, tmp_path / "output")
    result = merge(run, NullReporter())
    manifest = tmp_path / "output" / "manifest.json"
    written = manifest.stat().st_mtime_ns
    WorkspaceLayout(workspace).marker("merge").unlink()
    assert merge(run, NullReporter()) == result
    assert manifest.stat().st_mtime_ns == written


def test_damaged_artifact_of_the_same_spec_is_published_again(workspace: Path, tmp_path: Path) -> None:
    run = run_spec(workspace, tmp_path / "output")
    result = merge(run, NullReporter())
    damaged = next((tmp_path / "output" / "merged").glob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    again = merge(run, NullReporter())
    assert {a.kind: a.bytes for a in again.artifacts} == {a.kind: a.bytes for a in result.artifacts}
    assert published_results(run) is not None


def test_interrupted_publication_is_finished_by_the_next_run(workspace: Path, tmp_path: Path) -> None:
    """After a stop during publication no artifact is visible, and the next run succeeds."""

    class _Stop(NullReporter):
        def update(self, activity: str, *_: Any, **__: Any) -> None:
            if activity == "Publishing":
                raise KeyboardInterrupt

    output = tmp_path / "output"
    with pytest.raises(KeyboardInterrupt):
        merge(run_spec(workspace, output), _Stop())
    assert [path.name for path in output.iterdir() if not path.name.startswith(".")] == []
    merge(run_spec(workspace, output), NullReporter())
    assert sorted(path.name for path in output.iterdir()) == [
        "adapter",
        "manifest.json",
        "merged",
        "provenance",
        "report",
    ]


@pytest.mark.parametrize("found", ["manifest", "folder"])
def test_a_destination_with_other_files_is_rejected_and_not_changed(
    workspace: Path, tmp_path: Path, found: str
) -> None:
    output = tmp_path / "output"
    if found == "manifest":
        output.mkdir()
        (output / "manifest.json").write_text('{"specHash": "sha256:other"}')
    else:
        (output / "merged").mkdir(parents=True)
        (output / "merged" / "model.safetensors").write_text("precious")
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    with pytest.raises(StageError) as caught:
        merge(run_spec(workspace, output), NullReporter())
    assert caught.value.reason is Reason.DESTINATION_UNWRITABLE
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


def test_a_destination_that_cannot_be_written_has_a_reason(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StageError) as caught:
        merge(run_spec(workspace, tmp_path / "file" / "output"), NullReporter())
    assert caught.value.reason is Reason.DESTINATION_UNWRITABLE


def test_a_destination_that_fails_while_a_library_reads_it_has_its_reason(
    workspace: Path, tmp_path: Path
) -> None:
    """transformers reports such a failure as a model that it does not know."""
    output = tmp_path / "output"

    class _Lost(NullReporter):
        def update(self, activity: str, *_: Any, **__: Any) -> None:
            if activity == "Verifying" and output.exists():
                shutil.rmtree(output)

    with pytest.raises(StageError) as caught:
        merge(run_spec(workspace, output), _Lost())
    assert caught.value.reason is Reason.DESTINATION_UNWRITABLE
    merge(run_spec(workspace, output), NullReporter())
    assert (output / "manifest.json").is_file()


def test_a_failure_of_the_workspace_is_not_blamed_on_the_destination(workspace: Path, tmp_path: Path) -> None:
    """MERGE waits without end for its destination, so another cause must not look like it."""
    run = run_spec(workspace, tmp_path / "output")
    WorkspaceLayout(workspace).verification.unlink()
    with pytest.raises(FileNotFoundError):
        merge(run, NullReporter())
    next((workspace / "model").glob("*.safetensors")).unlink()
    with pytest.raises(StageError) as caught:
        merge(run, NullReporter())
    assert caught.value.reason is Reason.INVALID_MODEL


def test_a_destination_in_use_by_another_process_is_left_alone(workspace: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    with publishing_alone(output), pytest.raises(StageError, match="publishes there now"):
        merge(run_spec(workspace, output), NullReporter())
    assert list(output.iterdir()) == []


def test_published_artifacts_count_even_if_the_workspace_takes_no_marker(
    workspace: Path, tmp_path: Path
) -> None:
    marker = WorkspaceLayout(workspace).marker("merge")
    marker.with_name(f".{marker.name}.{os.getpid()}.tmp").mkdir()  # where the marker would be written first
    assert merge(run_spec(workspace, tmp_path / "output"), NullReporter()).artifacts
    assert not marker.exists()


def test_the_space_that_is_required_is_that_of_the_published_files(workspace: Path, tmp_path: Path) -> None:
    run = run_spec(workspace, tmp_path / "output")
    required = artifact_bytes(run, WorkspaceLayout(workspace))
    merge(run, NullReporter())
    published = folder_bytes(tmp_path / "output")
    headers_and_cards = 64 * 1024
    assert required - headers_and_cards < published < required + headers_and_cards


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.1, 2.0, 5.0, 20.0, -1.0, 300.0])
def test_a_merge_that_differs_from_the_trained_model_is_not_published(
    workspace: Path, tmp_path: Path, factor: float
) -> None:
    """The test replaces the adapter with one that is stronger or weaker, and sets the matching digest."""
    layout = WorkspaceLayout(workspace)
    _change_adapter(layout, factor)
    with pytest.raises(StageError) as caught:
        merge(run_spec(workspace, tmp_path / "output"), NullReporter())
    assert caught.value.reason is Reason.ARTIFACT_VERIFICATION_FAILED
    assert "found" in caught.value.message
    assert list((tmp_path / "output").iterdir()) == []


@pytest.mark.parametrize("factor", [0.0, float("nan")])
def test_an_adapter_that_learned_nothing_is_rejected(workspace: Path, tmp_path: Path, factor: float) -> None:
    _change_adapter(WorkspaceLayout(workspace), factor)
    with pytest.raises(StageError) as caught:
        merge(run_spec(workspace, tmp_path / "output"), NullReporter())
    assert caught.value.reason is Reason.ADAPTER_UNTRAINED


def judged(workspace: Path, verdict: str) -> None:
    """Let the workspace's TRAIN have this verdict."""
    layout = WorkspaceLayout(workspace)
    trained = read_marker(layout, "train", SPEC_HASH)
    assert trained is not None
    trained["evaluation"]["verdict"] = verdict
    write_marker(layout, "train", SPEC_HASH, trained)


def gated(run: RunSpec, gate: str) -> RunSpec:
    return run.model_copy(update={"evaluation": run.evaluation.model_copy(update={"gate": gate})})


def test_a_withheld_model_stays_in_the_workspace_until_the_gate_is_opened(
    workspace: Path, tmp_path: Path
) -> None:
    judged(workspace, "Worse")
    output = tmp_path / "output"
    run = run_spec(workspace, output)
    adapter = folder_digests(WorkspaceLayout(workspace).adapter)
    with pytest.raises(StageError) as caught:
        merge(gated(run, "WithholdIfWorse"), NullReporter())
    assert caught.value.reason is Reason.WITHHELD_BY_GATE
    assert not output.exists()
    assert folder_digests(WorkspaceLayout(workspace).adapter) == adapter
    merge(run, NullReporter())
    published = folder_digests(output / "merged")
    with pytest.raises(StageError) as caught:
        merge(gated(run, "WithholdUnlessImproved"), NullReporter())
    assert caught.value.reason is Reason.WITHHELD_BY_GATE
    assert folder_digests(output / "merged") == published, "what an earlier run published stays"


def test_a_gate_withholds_before_a_destination_that_does_not_work(workspace: Path, tmp_path: Path) -> None:
    """Otherwise the job would wait without end for a destination that it does not need."""
    judged(workspace, "NoChange")
    (tmp_path / "file").write_text("no folder")
    run = run_spec(workspace, tmp_path / "file" / "output")
    with pytest.raises(StageError) as caught:
        merge(gated(run, "WithholdUnlessImproved"), NullReporter())
    assert caught.value.reason is Reason.WITHHELD_BY_GATE


def test_the_merge_is_reported_beside_the_artifacts(workspace: Path, tmp_path: Path) -> None:
    result = merge(run_spec(workspace, tmp_path / "output"), NullReporter())
    report = json.loads((tmp_path / "output" / "report" / "merge.json").read_text())
    assert result.verification is not None
    assert report["verification"] == result.verification.document()
    assert "Merge report" in (tmp_path / "output" / "report" / "merge.html").read_text()
    manifest = json.loads((tmp_path / "output" / "manifest.json").read_text())
    assert {"report/merge.html", "report/merge.json"} <= manifest["files"].keys()
    assert report["merge"] == manifest["merge"]


def publishing(run: RunSpec, **changes: Any) -> RunSpec:
    return run.model_copy(update={"output": run.output.model_copy(update=changes)})


def test_the_adapter_names_the_base_that_is_published_with_it(workspace: Path, tmp_path: Path) -> None:
    """Result, manifest and card name it by its digest, and another job of the same base has the same folder."""
    kinds = ("Adapter", "Merged", "BaseAsTrained")
    run = publishing(run_spec(workspace, tmp_path / "output"), artifacts=kinds)
    result = merge(run, NullReporter())
    assert tuple(artifact.kind for artifact in result.artifacts) == kinds, "the order of the job"
    adapter, _, base = result.artifacts
    assert adapter.base_digest == base.digest
    assert base.digest == digest_of_files(folder_digests(tmp_path / "output" / "base-as-trained"))
    assert f"`{base.digest}`" in (tmp_path / "output" / "adapter" / "README.md").read_text()
    manifest = json.loads((tmp_path / "output" / "manifest.json").read_text())
    assert manifest["base"]["asTrainedDigest"] == base.digest
    assert "base-as-trained/config.json" in manifest["files"]
    other = run.model_copy(update={"job": run.job.model_copy(update={"name": "another"})})
    elsewhere = run.output.destination.model_copy(update={"path": tmp_path / "other"})
    again = merge(publishing(other, destination=elsewhere), NullReporter())
    assert again.artifacts[2].digest == base.digest


def test_adapter_alone_needs_no_merge(workspace: Path, tmp_path: Path) -> None:
    run = run_spec(workspace, tmp_path / "output")
    run = run.model_copy(update={"output": run.output.model_copy(update={"artifacts": ("Adapter",)})})
    result = merge(run, NullReporter())
    assert result.verification is None
    assert [artifact.kind for artifact in result.artifacts] == ["Adapter"]
    assert not (tmp_path / "output" / "merged").exists()


def test_a_model_larger_than_the_memory_shows_the_start_of_its_greedy_answer(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison has found these tokens already, so nothing is loaded."""
    whole = merge(run_spec(workspace, tmp_path / "first"), NullReporter()).verification
    WorkspaceLayout(workspace).marker("merge").unlink()
    monkeypatch.setattr(proof, "free_memory", lambda: 0)
    part = merge(run_spec(workspace, tmp_path / "second"), NullReporter()).verification
    assert whole is not None
    assert part is not None
    assert part.prompt == whole.prompt
    assert part.answer
    assert whole.answer.startswith(part.answer.removesuffix("…"))
    assert part.merged_loss == whole.merged_loss


def test_an_artifact_with_another_chat_template_is_not_published(workspace: Path, tmp_path: Path) -> None:
    """The template in the workspace changes between TRAIN and MERGE."""
    layout = WorkspaceLayout(workspace)
    path = layout.base / "chat_template.jinja"
    path.write_text(path.read_text().replace("assistant", "helper"))
    with pytest.raises(
        StageError, match="tokenizer and chat template must be those of the training"
    ) as caught:
        merge(run_spec(workspace, tmp_path / "output"), NullReporter())
    assert caught.value.reason is Reason.ARTIFACT_VERIFICATION_FAILED
    assert list((tmp_path / "output").iterdir()) == []


def test_plain_transformers_finds_no_4_bit_tensor(workspace: Path, tmp_path: Path) -> None:
    merge(run_spec(workspace, tmp_path / "output"), NullReporter())
    folder = tmp_path / "output" / "merged"
    assert not [name for name in _weights(folder) if "absmax" in name or "quant_state" in name]
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def _change_adapter(layout: WorkspaceLayout, factor: float) -> None:
    """Multiply every B by `factor` and put the new digest into TRAIN's marker."""
    path = layout.adapter / "adapter_model.safetensors"
    tensors = {
        name: tensor * factor if "lora_B" in name else tensor for name, tensor in load_file(path).items()
    }
    save_file(tensors, path, metadata={"format": "pt"})
    result = read_marker(layout, "train", SPEC_HASH)
    assert result is not None
    result["adapterDigest"] = digest_of_files(folder_digests(layout.adapter))
    write_marker(layout, "train", SPEC_HASH, result)


def test_nothing_is_written_without_the_signing_key_and_the_next_try_publishes(
    workspace: Path, tmp_path: Path
) -> None:
    """The Secret may be missing when MERGE starts. The job waits and tries again."""
    key, output = tmp_path / "key.pem", tmp_path / "output"
    run = run_spec(workspace, output)
    run = run.model_copy(update={"output": run.output.model_copy(update={"signing": Signing(key_path=key)})})
    with pytest.raises(StageError, match=r"output\.signing") as caught:
        merge(run, NullReporter())
    assert caught.value.reason is Reason.DESTINATION_UNWRITABLE
    assert list(output.iterdir()) == []
    private = ec.generate_private_key(ec.SECP256R1())
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    merge(run, NullReporter())
    assert [path.name for path in (output / "provenance").iterdir()] == ["model.sig"]
    (output / "provenance" / "model.sig").unlink()
    assert published_results(run) is None, "a publication without its statement is not complete"
