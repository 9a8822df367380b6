from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from finetune_trainer.contract.result import CompletedResult, PublishedResult, StageResult
from finetune_trainer.contract.train_result import TrainResult
from finetune_trainer.data.dataset.tables import stream_examples
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.quantization.original import read_original
from finetune_trainer.stages.prepare.stage import prepare
from finetune_trainer.telemetry.reporter import NullReporter
from finetune_trainer.workspace.digests import file_digest
from finetune_trainer.workspace.layout import WorkspaceLayout, write_marker
from jsonschema import Draft202012Validator
from transformers import AutoModelForCausalLM

from tests.support.repository import ROOT
from tests.support.results import MERGE, PREPARE, TRAIN
from tests.support.servers.loopback import Script, status
from tests.support.servers.signed_url import SECRET, serving
from tests.support.tiny_models import conversation_rows, dataset_of, tiny_tokenizer, write_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from finetune_trainer.contract.run_spec import RunSpec


def test_a_dataset_and_a_model_become_tables_and_a_checkpoint(make_run: Callable[..., RunSpec]) -> None:
    run = make_run()
    result = prepare(run, NullReporter()).document()
    schema = json.loads((ROOT / "contract" / "result.schema.json").read_text())
    Draft202012Validator({**schema["$defs"]["prepare"], "$defs": schema["$defs"]}).validate(result["prepare"])
    dataset = result["prepare"]["dataset"]
    assert (dataset["rows"], dataset["kept"]) == (20, 20)
    assert (dataset["trainingExamples"], dataset["validationExamples"]) == (18, 2)
    layout = WorkspaceLayout(run.workspace.path)
    examples = list(stream_examples(layout.training_table))
    assert len(examples) == 18
    decoded = tiny_tokenizer().decode([label for label in examples[0].labels if label != -100])
    assert decoded == dataset["example"]["learned"] == f"it is {examples[0].row}<|im_end|>"


def test_a_second_run_gives_the_same_result_without_the_dataset(
    make_run: Callable[..., RunSpec], run_document: dict[str, Any]
) -> None:
    run = make_run()
    first = prepare(run, NullReporter())
    tables = WorkspaceLayout(run.workspace.path).training_table
    before = tables.stat().st_mtime_ns
    assert prepare(run, NullReporter()) == first
    assert tables.stat().st_mtime_ns == before
    write_rows(Path(run_document["dataset"]["source"]["path"]), conversation_rows(21))
    assert (
        prepare(run, NullReporter()).document()["prepare"]["dataset"]["digest"]
        != first.document()["prepare"]["dataset"]["digest"]
    )


def test_a_custom_template_is_part_of_the_artifact(
    make_run: Callable[..., RunSpec], run_document: dict[str, Any], tmp_path: Path
) -> None:
    """The model must be served with the template of its training."""
    template = tmp_path / "own.jinja"
    template.write_text(str(tiny_tokenizer().chat_template).replace("\n' }}", "\n\n' }}"), encoding="utf-8")
    run = make_run(model={**run_document["model"], "chatTemplatePath": str(template)})
    prepare(run, NullReporter())
    found = WorkspaceLayout(run.workspace.path).base / "chat_template.jinja"
    assert found.read_bytes() == template.read_bytes()


def warning_codes(run: RunSpec) -> list[str]:
    result = prepare(run, NullReporter()).document()
    return [warning["code"] for warning in result["prepare"]["dataset"]["warnings"]]


def test_result_and_report_name_the_tokens_that_end_answers(make_run: Callable[..., RunSpec]) -> None:
    run = make_run()
    dataset = prepare(run, NullReporter()).document()["prepare"]["dataset"]
    end = tiny_tokenizer().convert_tokens_to_ids("<|im_end|>")
    assert dataset["endTokens"] == [{"id": end, "text": "<|im_end|>"}]
    page = WorkspaceLayout(run.workspace.path).dataset_page.read_text(encoding="utf-8")
    assert f"<code>&lt;|im_end|&gt;</code> ({end}). The artifact stops there." in page


def test_a_maximum_length_beyond_the_models_context_is_a_warning(
    make_run: Callable[..., RunSpec], run_document: dict[str, Any]
) -> None:
    assert "BeyondContext" not in warning_codes(make_run())
    longer = make_run(training={**run_document["training"], "maximumLength": 513})
    assert "BeyondContext" in warning_codes(longer)


def variant(tiny_model: Path, folder: Path, token: str) -> dict[str, Any]:
    """Return a run spec's model whose tokenizer has one token more than the embedding has rows."""
    shutil.copytree(tiny_model, folder)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<|extra|>"], special_tokens=True)
    tokenizer.chat_template = str(tokenizer.chat_template).replace("<|im_start|>", token)
    tokenizer.save_pretrained(folder)
    return {"source": {"kind": "Directory", "path": str(folder)}, "chatTemplateArguments": {}}


def test_a_token_without_an_embedding_fails_only_if_the_template_writes_it(
    make_run: Callable[..., RunSpec], tiny_model: Path, tmp_path: Path
) -> None:
    unused = make_run(model=variant(tiny_model, tmp_path / "unused", "<|im_start|>"))
    assert "TokensWithoutEmbedding" in warning_codes(unused)
    error = failure(make_run(model=variant(tiny_model, tmp_path / "used", "<|extra|>")))
    assert error.reason is Reason.INVALID_MODEL
    assert "'<|extra|>'" in error.message


def test_leftover_files_of_the_model_are_named_and_not_used(
    make_run: Callable[..., RunSpec], tiny_model: Path, tmp_path: Path
) -> None:
    """transformers would follow both files away from the model's own weights."""
    shutil.copytree(tiny_model, tmp_path / "model")
    leftovers = {
        "adapter_config.json": {"base_model_name_or_path": "org/elsewhere", "peft_type": "LORA"},
        "model.safetensors.index.json": {"weight_map": {"a": "model-00001-of-00002.safetensors"}},
    }
    for name, content in leftovers.items():
        (tmp_path / "model" / name).write_text(json.dumps(content))
    source = {"kind": "Directory", "path": str(tmp_path / "model")}
    run = make_run(model={"source": source, "chatTemplateArguments": {}})
    assert "FilesIgnored" in warning_codes(run)
    layout = WorkspaceLayout(run.workspace.path)
    for folder in (layout.base, layout.quantized_model):
        assert not [name for name in leftovers if (folder / name).exists()]
    AutoModelForCausalLM.from_pretrained(layout.quantized_model, device_map="cpu")


def failure(run: RunSpec) -> StageError:
    with pytest.raises(StageError) as caught:
        prepare(run, NullReporter())
    return caught.value


def test_a_template_that_cannot_be_read_fails_before_the_model_is_read(
    make_run: Callable[..., RunSpec], tmp_path: Path
) -> None:
    nowhere = {"kind": "Directory", "path": str(tmp_path / "nowhere")}
    template = tmp_path / "folder.jinja"
    template.mkdir()
    run = make_run(model={"source": nowhere, "chatTemplatePath": str(template), "chatTemplateArguments": {}})
    assert failure(run).reason is Reason.CHAT_TEMPLATE_MISSING


def test_too_many_rows_without_an_answer_are_named(
    make_run: Callable[..., RunSpec], run_document: dict[str, Any]
) -> None:
    rows = conversation_rows(20)
    for number in (3, 17):
        rows[number - 1]["messages"].pop()
    write_rows(Path(run_document["dataset"]["source"]["path"]), rows)
    error = failure(make_run())
    assert error.reason is Reason.INVALID_DATASET
    assert "2 NoAssistantTurn in rows 3, 17" in error.message
    accepted = make_run(dataset=dataset_of(run_document, rejectedRows={"maximumFraction": 0.1}))
    dataset = prepare(accepted, NullReporter()).document()["prepare"]["dataset"]
    assert dataset["rejected"] == {"NoAssistantTurn": 2}


def test_too_much_broken_json_is_malformed(
    make_run: Callable[..., RunSpec], run_document: dict[str, Any]
) -> None:
    path = Path(run_document["dataset"]["source"]["path"])
    path.write_text(path.read_text() + '{"messages": [\n')
    error = failure(make_run())
    assert error.reason is Reason.MALFORMED_DATASET
    assert "row 21" in error.message


@pytest.mark.parametrize(("content", "rows"), [("", 0), ("one", 1)])
def test_too_few_rows_fail_the_stage(
    make_run: Callable[..., RunSpec], run_document: dict[str, Any], content: str, rows: int
) -> None:
    write_rows(Path(run_document["dataset"]["source"]["path"]), conversation_rows(rows))
    assert failure(make_run()).reason is Reason.INVALID_DATASET, content


def test_a_missing_dataset_or_model_has_its_own_reason(
    make_run: Callable[..., RunSpec], run_document: dict[str, Any], tmp_path: Path
) -> None:
    missing = {"kind": "File", "path": str(tmp_path / "nowhere.jsonl")}
    assert (
        failure(make_run(dataset=dataset_of(run_document, source=missing))).reason is Reason.DATASET_NOT_FOUND
    )
    (tmp_path / "empty").mkdir()
    model = {"source": {"kind": "Directory", "path": str(tmp_path / "empty")}, "chatTemplateArguments": {}}
    assert failure(make_run(model=model)).reason is Reason.INVALID_MODEL


def test_repeated_rows_are_dropped_and_held_out_rows_are_not_trained_on(
    make_run: Callable[..., RunSpec], run_document: dict[str, Any], tmp_path: Path
) -> None:
    rows = conversation_rows(20)
    write_rows(Path(run_document["dataset"]["source"]["path"]), [*rows, rows[0]])
    held_out = write_rows(tmp_path / "held-out.jsonl", rows[:5])
    validation = {"source": {"kind": "File", "path": str(held_out)}}
    run = make_run(dataset=dataset_of(run_document, validation=validation))
    dataset = prepare(run, NullReporter()).document()["prepare"]["dataset"]
    assert (dataset["trainingExamples"], dataset["validationExamples"]) == (15, 5)
    assert dataset["duplicates"] == 6


def test_a_validation_file_without_rows_is_named_as_such(
    make_run: Callable[..., RunSpec], run_document: dict[str, Any], tmp_path: Path
) -> None:
    validation = {"source": {"kind": "File", "path": str(write_rows(tmp_path / "held-out.jsonl", []))}}
    error = failure(make_run(dataset=dataset_of(run_document, validation=validation)))
    assert error.reason is Reason.INVALID_DATASET
    assert error.message.startswith(
        "dataset.validation.source: the dataset must have rows, found an empty file"
    )


def test_the_dataset_digest_does_not_depend_on_the_path(
    make_run: Callable[..., RunSpec], run_document: dict[str, Any], tmp_path: Path
) -> None:
    first = prepare(make_run(), NullReporter()).document()["prepare"]
    second = prepare(make_run(workspace={"path": str(tmp_path / "elsewhere")}), NullReporter()).document()[
        "prepare"
    ]
    assert first == second
    assert run_document["workspace"]["path"] != str(tmp_path / "elsewhere")


def test_a_broken_ca_bundle_ends_the_stage_before_anything_is_fetched(
    make_run: Callable[..., RunSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ca.crt").write_text("-----BEGIN CERTIFICATE-----\ncut")
    monkeypatch.setenv("FINETUNE_CA_BUNDLE", str(tmp_path / "ca.crt"))
    run = make_run()
    with pytest.raises(StageError, match="CA bundle") as caught:
        prepare(run, NullReporter())
    assert caught.value.reason is Reason.INVALID_NETWORK_SETTINGS
    assert not (WorkspaceLayout(run.workspace.path).root / "tokenizer").exists()


def test_a_finished_training_is_reported_and_artifacts_that_are_gone_are_not(
    make_run: Callable[..., RunSpec],
) -> None:
    """The destination is empty, so MERGE must publish again, whatever its marker says."""
    run = make_run()
    layout = WorkspaceLayout(run.workspace.path)
    write_marker(layout, "train", run.spec_hash, TRAIN.document())
    write_marker(layout, "merge", run.spec_hash, MERGE.document())
    assert prepare(run, NullReporter()).completed == CompletedResult(train=TRAIN)


def publish(run: RunSpec, trained: TrainResult = TRAIN) -> Path:
    """Publish an artifact for the run's spec; return its weight file."""
    destination = run.output.destination.path
    (destination / "merged").mkdir(parents=True)
    weights = destination / "merged" / "model.safetensors"
    weights.write_bytes(b"weights")
    results = PublishedResult(prepare=PREPARE, train=trained, merge=MERGE).document()
    files = {"merged/model.safetensors": {"digest": file_digest(weights), "bytes": 7}}
    manifest = {"specHash": run.spec_hash, "results": results, "files": files}
    (destination / "manifest.json").write_text(json.dumps(manifest))
    return weights


def test_prepare_ends_early_if_the_destination_has_the_published_artifact(
    make_run: Callable[..., RunSpec],
) -> None:
    run = make_run()
    weights = publish(run)
    later = CompletedResult(train=TRAIN, merge=MERGE)
    assert prepare(run, NullReporter()) == StageResult(prepare=PREPARE, completed=later)
    assert not run.workspace.path.exists()
    weights.write_bytes(b"changed")
    assert prepare(run, NullReporter()).completed is None


def test_no_job_succeeds_with_published_artifacts_that_its_gate_withholds(
    make_run: Callable[..., RunSpec], run_document: dict[str, Any]
) -> None:
    """An earlier run of the same spec published them with another gate. They stay."""
    evaluation = TRAIN.evaluation.model_copy(update={"verdict": "NoChange"})
    trained = TRAIN.model_copy(update={"evaluation": evaluation})
    run = make_run(evaluation={**run_document["evaluation"], "gate": "WithholdUnlessImproved"})
    weights = publish(run, trained)
    assert failure(run).reason is Reason.WITHHELD_BY_GATE
    assert weights.read_bytes() == b"weights"


def test_a_destination_that_is_taken_ends_prepare_before_anything_is_fetched(
    make_run: Callable[..., RunSpec], run_document: dict[str, Any]
) -> None:
    Path(run_document["dataset"]["source"]["path"]).unlink()
    run = make_run()
    destination = run.output.destination.path
    destination.mkdir()
    (destination / "manifest.json").write_text(json.dumps({"specHash": "sha256:" + "1" * 64}))
    error = failure(run)
    assert error.reason is Reason.DESTINATION_UNWRITABLE
    assert "another job" in error.message
    assert not run.workspace.path.exists()


def command(arguments: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "trainer_image" / "src"),
        "OMP_NUM_THREADS": "1",
        **variables,
    }
    return subprocess.run(
        [sys.executable, "-m", "finetune_trainer", *arguments],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        timeout=180,
    )


@pytest.mark.slow
def test_the_process_writes_its_result_and_last_line_without_the_url(
    tmp_path: Path, run_document: dict[str, Any]
) -> None:
    """A real process fetches from a real server. No file or output contains the signed query."""
    rows = Path(run_document["dataset"]["source"]["path"]).read_bytes()
    document = {
        **run_document,
        "dataset": dataset_of(run_document, source={"kind": "Url", "urlVariable": "FINETUNE_DATASET_URL"}),
        "limits": {**run_document["limits"], "allowPrivateAddresses": True},
    }
    run_file, message = tmp_path / "run.json", tmp_path / "termination-message"
    run_file.write_text(json.dumps(document))
    arguments = ["prepare", "--run", str(run_file), "--termination-message", str(message), "--rows"]
    with serving(Script([status(200, rows)])) as url:
        good = command(arguments, FINETUNE_DATASET_URL=url)
    assert good.returncode == 0, good.stderr
    lines = [json.loads(line) for line in good.stdout.splitlines()]
    assert [line["row"] for line in lines] == list(range(1, 21))
    assert all(line["accepted"] and line["reason"] is None for line in lines)
    document["workspace"] = {"path": str(tmp_path / "second")}
    run_file.write_text(json.dumps(document))
    with serving(Script([status(403, b"Request has expired")])) as url:
        bad = command(arguments[:-1], FINETUNE_DATASET_URL=url)
    assert bad.returncode == 65
    result = json.loads(message.read_bytes())
    assert (result["outcome"], result["reason"]) == ("Failed", "DatasetUrlExpired")
    last = bad.stderr.splitlines()[-1]
    assert last.startswith("finetune-trainer: stage=prepare outcome=Failed code=65 at=")
    secret = SECRET.partition("=")[2]
    leaks = [path for path in tmp_path.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    assert leaks == []
    assert secret not in good.stdout + good.stderr + bad.stdout + bad.stderr


@pytest.mark.slow
def test_masks_of_one_dataset_and_one_tokenizer_folder_are_listed(tmp_path: Path, tiny_model: Path) -> None:
    rows = conversation_rows(2)
    rows[1]["messages"].pop()
    dataset = write_rows(tmp_path / "rows.jsonl", rows)
    done = command(["masks", "--tokenizer", str(tiny_model), "--dataset", str(dataset)])
    assert done.returncode == 0, done.stderr
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert (first["accepted"], second["accepted"], second["reason"]) == (True, False, "NoAssistantTurn")
    (example,) = first["examples"]
    assert len(example["input_ids"]) == len(example["labels"])


@pytest.mark.slow
def test_a_dataset_that_cannot_be_learned_ends_the_process_with_its_reason_once(
    tmp_path: Path, run_document: dict[str, Any]
) -> None:
    rows = Path(run_document["dataset"]["source"]["path"])
    rows.write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n' * 3)
    run_file = tmp_path / "run.json"
    run_file.write_text(json.dumps(run_document))
    done = command(
        ["prepare", "--run", str(run_file), "--termination-message", str(tmp_path / "end"), "--rows"]
    )
    assert (done.returncode, done.stdout) == (65, "")
    assert done.stderr.count("these are pairs of a preferred and a rejected answer") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("cached", [False, True])
def test_original_weights_are_kept_for_what_reads_them(
    make_run: Callable[..., RunSpec],
    run_document: dict[str, Any],
    tiny_model: Path,
    tmp_path: Path,
    *,
    cached: bool,
) -> None:
    """With a cache that has the model, no weight would be fetched otherwise."""
    changes: dict[str, Any] = {"modelCache": {"path": str(tmp_path / "cache")}} if cached else {}
    if cached:
        (tmp_path / "cache").mkdir()
        prepare(make_run(**changes), NullReporter())
        assert not WorkspaceLayout(tmp_path / "workspace").original.exists()
        shutil.rmtree(tmp_path / "workspace")
    needs = {"artifacts": ["Adapter", "BaseAsTrained"]} if cached else {"mergeOnto": "OriginalWeights"}
    run = make_run(output={**run_document["output"], **needs}, **changes)
    for _ in range(2):
        result = prepare(run, NullReporter()).prepare
        assert result is not None
        original = WorkspaceLayout(run.workspace.path).original
        assert (original / "model.safetensors").read_bytes() == (
            tiny_model / "model.safetensors"
        ).read_bytes()
        assert read_original(original, result.model.digest).startswith("sha256:")
