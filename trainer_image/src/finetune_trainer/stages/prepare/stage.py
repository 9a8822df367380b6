"""PREPARE: fetch, prove the masks, quantize, report. Every failure that needs no GPU happens here."""

from __future__ import annotations

import logging
import os
import shutil
import time
from typing import TYPE_CHECKING, Any

from finetune_trainer.contract.memory_trace import TraceAnswer
from finetune_trainer.contract.model_config import NESTED, has_formula, select_config_fields
from finetune_trainer.contract.object_store import ObjectStoreSource
from finetune_trainer.contract.result import CompletedResult, DatasetResult, PrepareResult, StageResult
from finetune_trainer.contract.run_spec import DirectorySource, RunSpec, Training
from finetune_trainer.data.chat_template.processor import TEMPLATE, place_processor_template
from finetune_trainer.data.dataset.listing import print_rows
from finetune_trainer.data.dataset.row_source import open_source
from finetune_trainer.evaluation.gate import require_passed
from finetune_trainer.model.adapter_targets import reject_variant
from finetune_trainer.model.artifact_size import artifact_bytes, least_artifact_bytes
from finetune_trainer.model.describe import BaseModel, inspect_base_model
from finetune_trainer.model.merge_target import keeps_original
from finetune_trainer.model.router_loss import no_router_loss
from finetune_trainer.model.support import read_config
from finetune_trainer.quantization.mxfp4 import DequantizedModel
from finetune_trainer.quantization.original import KeptModel
from finetune_trainer.quantization.quantize import quantize_model
from finetune_trainer.report.targets import read_target_prompts
from finetune_trainer.sources.model import DirectoryModel, ModelSource, ignored_files, used_small_files
from finetune_trainer.sources.network import Network
from finetune_trainer.sources.retry import RetryPolicy
from finetune_trainer.sources.trust import read_bundle
from finetune_trainer.stages.prepare.dataset import (
    DatasetRejectedError,
    fetch_datasets,
    given_template,
    make_masker,
    prove_dataset,
)
from finetune_trainer.stages.prepare.destination import check_destination, check_space
from finetune_trainer.stages.prepare.length import require_length
from finetune_trainer.stages.prepare.memory_trace import (
    needs_trace,
    require_size,
    trace_memory,
)
from finetune_trainer.stages.prepare.model_proof import Trial, no_trial, require_provable
from finetune_trainer.stages.prepare.operator_hold import after_the_operator, await_decision
from finetune_trainer.stages.prepare.report import report_dataset, report_rejection
from finetune_trainer.telemetry.redaction import Redactor, secrets_of
from finetune_trainer.telemetry.reporter import NullReporter, Reporter
from finetune_trainer.workspace.access import require_workspace
from finetune_trainer.workspace.completed import trained_result
from finetune_trainer.workspace.layout import WorkspaceLayout, write_marker

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_log = logging.getLogger(__name__)


def prepare(run: RunSpec, progress: Reporter, trial: Trial = no_trial) -> StageResult:
    """Fill the workspace; return the member `prepare` of the result, and `completed` if later stages are finished.

    If the destination proves that everything is published, nothing is done again. Raises StageError, also
    WithheldByGate if the gate withholds what is published already. `trial` tries the model on small random weights.
    """
    layout = WorkspaceLayout(run.workspace.path)
    if layout.root.exists():
        # The markers of an earlier attempt are read next.
        require_workspace(layout.root)
    published = check_destination(run, layout)
    if published is not None:
        _log.info("the destination already holds everything that this spec asks for")
        # The gate may have been stricter than when they were published. No job succeeds with artifacts that it withholds.
        require_passed(run.evaluation.gate, published.train.evaluation)
        later = CompletedResult(train=published.train, merge=published.merge)
        return StageResult(prepare=published.prepare, completed=later)
    require_workspace(layout.root)
    redact = Redactor(secrets_of(run, os.environ))
    if run.dataset.target_prompts_path is not None:
        # The report reads it again, but a bad file must fail now and not minutes later.
        read_target_prompts(run.dataset.target_prompts_path)
    given_template(run)
    # The clients read it again, but a broken bundle must fail now and not after a download.
    read_bundle(os.environ)
    source = _in_16_bits(_model_source(run, layout, lambda: progress.update("Starting", 0, None)), layout)
    tokenizer = _tokenizer_folder(source, layout)
    # The quantization inspects it again, but an unsupported model must fail before the rows are proven. It must also fail
    # with its own reason, before the operator sizes what it cannot know.
    base = inspect_base_model(tokenizer)
    placed = place_processor_template(tokenizer, first=base.part is not None)
    # Before rows are proven and weights fetched: the operator can now decide if any GPU is large enough.
    config, trained = _configs(tokenizer, base)
    progress.report_config(config)
    reported = time.monotonic()
    _require_possible(run.training, base)
    require_provable(trial(tokenizer))
    ignored = ignored_files(source)
    for name, why in ignored.items():
        _log.warning("the model's file %s is not used: %s", name, why)
    try:
        proven = prove_dataset(run, layout, tokenizer, progress, redact, base.embedding_rows)
    except DatasetRejectedError as rejected:
        report_rejection(run, layout, rejected)
        raise
    traced = _traced(run, layout, progress, trained, proven.result.longest_example)
    # Before weights are fetched.
    with after_the_operator(reported):
        check_space(run, layout, least_artifact_bytes(run, base.parameters + base.other_parameters))
    kept = KeptModel(source, layout.original) if keeps_original(run) else None
    # The checks of a folder's headers need the folder itself; its files are kept after the quantization.
    quantized = source if kept is None or isinstance(source, DirectoryModel) else kept
    model = quantize_model(quantized, layout, progress, run.model_cache.path if run.model_cache else None)
    if kept is not None:
        kept.keep_all(model.digest, lambda done, total: progress.update("FetchingModel", done, total))
    template = run.model.chat_template_path or (tokenizer / TEMPLATE if placed else None)
    if template is not None:
        # The artifact must be served with the template of its training.
        shutil.copyfile(template, layout.base / TEMPLATE)
    head = report_dataset(run, layout, proven, tokenizer, progress, redact, base, ignored)
    for folder in (
        layout.root / "tokenizer",
        layout.root / "download",
        layout.root / "dequantized",
        layout.dataset_parts,
    ):
        shutil.rmtree(folder, ignore_errors=True)
    check_space(run, layout, artifact_bytes(run, layout))
    result = PrepareResult(
        dataset=DatasetResult.join(proven.result, head),
        model=model.result().model_copy(update={"config": config, **_traced_members(traced)}),
    )
    # MERGE copies it into the manifest.
    write_marker(layout, "prepare", run.spec_hash, result.document())
    later_result = trained_result(run, layout)
    return (
        StageResult(prepare=result)
        if later_result is None
        else StageResult(prepare=result, completed=CompletedResult(train=later_result))
    )


def _require_possible(training: Training, base: BaseModel) -> None:
    """Raise StageError if the model cannot be trained with these settings."""
    require_length(training.maximum_length, base)
    reject_variant(training.lora, base.transposed)
    if training.router_aux_loss_coefficient is not None and base.router_loss_obstacle is not None:
        raise no_router_loss(base.router_loss_obstacle)


def _configs(folder: Path, base: BaseModel) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the config's members that the operator gets, and the whole config of the model that is trained."""
    document = read_config(folder / "config.json")
    if base.part is None:
        return select_config_fields(document), document
    # The text part as it is built, with the defaults of its class.
    trained = base.part.document()
    return select_config_fields({**document, NESTED: trained}), trained


def _traced(
    run: RunSpec, layout: WorkspaceLayout, progress: Reporter, config: dict[str, Any], longest: int
) -> TraceAnswer:
    """Trace the model's memory where sizing needs it.

    A model without a formula is first sized here. No weight is fetched before the operator can hold a job that fits nowhere.
    Raises StageError(ModelSizeUnknown) as `require_size` does.
    """
    if not needs_trace(run, config):
        return TraceAnswer()
    progress.update("TracingMemory", 0, None)
    answer = trace_memory(run, layout, config, longest)
    progress.report_trace(answer.trace)
    require_size(run, config, answer)
    if not has_formula(config) and progress.port is not None and not run.telemetry.is_local:
        await_decision(time.monotonic())
    return answer


def _traced_members(traced: TraceAnswer) -> dict[str, Any]:
    found = {"trace": traced.trace, "trace_problem": traced.problem}
    return {name: value for name, value in found.items() if value is not None}


def print_proven_rows(run: RunSpec) -> None:
    """Print each row's ids and labels, or its rejection, as a line of JSON, even if the dataset was rejected.

    Prints nothing if the stage failed before it had the tokenizer. Raises StageError as `prepare` does.
    """
    layout = WorkspaceLayout(run.workspace.path)
    folder = next((path for path in (layout.root / "tokenizer", layout.base) if path.is_dir()), None)
    if folder is not None:
        training = fetch_datasets(run, layout, NullReporter())["training"]
        dataset = run.dataset
        samples = open_source(training.paths, dataset.format).first_conversations(dataset.reasoning)
        print_rows(training.paths, make_masker(run, folder, samples), dataset.reasoning, dataset.format)


def _in_16_bits(source: ModelSource, layout: WorkspaceLayout) -> ModelSource:
    """Return a source of the same model in 16 bits, if its checkpoint is one that PREPARE dequantizes."""
    if not DequantizedModel.applies(source):
        return source
    _log.warning(
        "the model's MXFP4 weights are dequantized to bf16, which is exact, and then quantized to NF4"
    )
    return DequantizedModel(source, layout.root / "dequantized")


def _model_source(run: RunSpec, layout: WorkspaceLayout, waiting: Callable[[], None]) -> ModelSource:
    source = run.model.source
    if isinstance(source, DirectorySource):
        return DirectoryModel(source.path)
    folder = layout.root / "download" / "model"
    # The clients below are imported only for their kind of source: each import takes a second.
    if isinstance(source, ObjectStoreSource):
        from finetune_trainer.sources.object_store import ObjectStoreModel  # noqa: PLC0415

        return ObjectStoreModel(
            source,
            folder,
            allow_private_addresses=run.limits.allow_private_addresses,
            retry_seconds=run.limits.retry_seconds,
            waiting=waiting,
        )
    from finetune_trainer.sources.hub_model import HubModel  # noqa: PLC0415

    token = os.environ.get(source.token_variable) if source.token_variable else None
    network = Network.from_environment(
        os.environ,
        RetryPolicy(run.limits.retry_seconds),
        allow_private=run.limits.allow_private_addresses,
    )
    return HubModel(source.repository, source.revision, token, folder, network=network, waiting=waiting)


def _tokenizer_folder(source: ModelSource, layout: WorkspaceLayout) -> Path:
    """Copy the small files into one folder, so that the tokenizer loads before any weight is fetched."""
    folder = layout.root / "tokenizer"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in used_small_files(source):
        shutil.copyfile(path, folder / path.name)
    return folder
