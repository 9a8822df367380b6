"""PREPARE: fetch, prove the masks, quantise. Everything that can fail without a GPU fails here."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import shutil
from typing import TYPE_CHECKING, Any

from finetune_trainer.completed import completed_stages, published_results
from finetune_trainer.contract import DirectorySource, FileSource, RunSpec, ValidationSource
from finetune_trainer.data.dataset import build_dataset
from finetune_trainer.data.listing import print_rows
from finetune_trainer.data.masking import Masker
from finetune_trainer.data.template import ChatTemplate, load_tokenizer
from finetune_trainer.digests import file_digest
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.generation import end_token_ids
from finetune_trainer.quantise import quantise
from finetune_trainer.sources.files import require_file
from finetune_trainer.sources.http import Limits, download
from finetune_trainer.sources.model import DirectoryModel, ModelSource
from finetune_trainer.telemetry import NullReporter, Reporter
from finetune_trainer.workspace import WorkspaceLayout, digest_of, read_marker, write_marker

if TYPE_CHECKING:
    from pathlib import Path

_log = logging.getLogger(__name__)
_DATASET_FORMAT = 1  # raise when the same rows and tokenizer would give other ids or labels


def prepare(run: RunSpec, progress: Reporter) -> dict[str, Any]:
    """Fill the workspace and return the result's members `prepare` and, where later stages are done, `completed`.

    A job whose destination proves that all of it is published is not worked on again. Raises StageError.
    """
    published = published_results(run)
    if published is not None:
        _log.info("the destination already holds everything that this spec asks for")
        prepared = published.pop("prepare")
        return {"prepare": prepared, "completed": published}
    layout = WorkspaceLayout(run.workspace.path)
    layout.root.mkdir(parents=True, exist_ok=True)
    source = _model_source(run, layout)
    tokenizer = _tokenizer_folder(source, layout)
    dataset = _dataset(run, layout, tokenizer, progress)
    model = quantise(source, layout, progress)
    if run.model.chat_template_path is not None:
        # The artifact must be served with the template that it was trained with.
        shutil.copyfile(run.model.chat_template_path, layout.base / "chat_template.jinja")
    shutil.rmtree(layout.root / "tokenizer", ignore_errors=True)
    shutil.rmtree(layout.root / "download", ignore_errors=True)
    members: dict[str, Any] = {"prepare": {"dataset": dataset, "model": model.result()}}
    # MERGE puts it into the manifest.
    write_marker(layout, "prepare", run.spec_hash, members["prepare"])
    completed = completed_stages(run, layout)
    if completed:
        members["completed"] = completed
    return members


def print_proven_rows(run: RunSpec) -> None:
    """Print each row's ids and labels, or its refusal, as a line of JSON, whether the dataset was accepted or not.

    Prints nothing if the stage failed before the tokenizer was there. Raises StageError as `prepare` does.
    """
    layout = WorkspaceLayout(run.workspace.path)
    folder = next((path for path in (layout.base, layout.root / "tokenizer") if path.is_dir()), None)
    if folder is not None:
        training, _ = dataset_files(run, layout, NullReporter())
        print_rows(training, make_masker(run, folder), run.dataset.reasoning)


def make_masker(run: RunSpec, tokenizer_folder: Path) -> Masker:
    """Build the masks' maker for the run's tokenizer, template and maximum length. Raises StageError."""
    template = None
    if run.model.chat_template_path is not None:
        try:
            template = run.model.chat_template_path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise StageError(
                Reason.CHAT_TEMPLATE_MISSING, f"model.chatTemplate must be a readable text file: {error}"
            ) from error
    chat = ChatTemplate(load_tokenizer(tokenizer_folder), template, run.model.chat_template_arguments)
    return Masker(chat, run.training.maximum_length, end_token_ids(tokenizer_folder))


def dataset_files(run: RunSpec, layout: WorkspaceLayout, progress: Reporter) -> tuple[Path, Path | None]:
    """Make the training file and, where it has a source of its own, the validation file present here."""
    training = _fetch(run, run.dataset.source, layout.root / "download" / "dataset", progress)
    validation = None
    if isinstance(run.dataset.validation, ValidationSource):
        validation = _fetch(
            run, run.dataset.validation.source, layout.root / "download" / "validation", progress
        )
    return training, validation


def _model_source(run: RunSpec, layout: WorkspaceLayout) -> ModelSource:
    source = run.model.source
    if isinstance(source, DirectorySource):
        return DirectoryModel(source.path)
    from finetune_trainer.sources.huggingface import HubModel  # noqa: PLC0415 -- only where a hub is used

    token = os.environ.get(source.token_variable) if source.token_variable else None
    return HubModel(source.repository, source.revision, token, layout.root / "download" / "model")


def _tokenizer_folder(source: ModelSource, layout: WorkspaceLayout) -> Path:
    """Copy the small files beside each other, so that the tokenizer loads before any weight is fetched."""
    folder = layout.root / "tokenizer"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in source.small_files():
        shutil.copyfile(path, folder / path.name)
    return folder


def _fetch(run: RunSpec, source: Any, target: Path, progress: Reporter) -> Path:
    if isinstance(source, FileSource):
        return require_file(source.path, run.limits.dataset_bytes)
    url = os.environ.get(source.url_variable)
    if not url or not url.strip():
        raise StageError(
            Reason.DATASET_NOT_FOUND,
            f"the environment variable {source.url_variable} must hold the dataset's URL, found it empty",
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    limits = Limits(run.limits.dataset_bytes, run.limits.download_seconds, run.limits.allow_private_addresses)
    download(url.strip(), target, limits, lambda done, total: progress.update("FetchingDataset", done, total))
    return target


def _dataset(run: RunSpec, layout: WorkspaceLayout, tokenizer: Path, progress: Reporter) -> dict[str, Any]:
    """Build the tables, or return the earlier result if nothing that they depend on has changed."""
    remote = [source for source in _sources(run) if not isinstance(source, FileSource)]
    if remote:
        # A URL's content may have changed, but a finished stage must not depend on a URL that expired since.
        early = read_marker(layout, "dataset", _remote_inputs(run, tokenizer))
        if early is not None and _tables_exist(layout):
            return early
    progress.update("FetchingDataset", 0, None)
    training, validation = dataset_files(run, layout, progress)
    inputs = _remote_inputs(run, tokenizer) if remote else _inputs(run, tokenizer, training, validation)
    done = read_marker(layout, "dataset", inputs)
    if done is not None and _tables_exist(layout):
        return done
    masker = make_masker(run, tokenizer)
    result = build_dataset(run.dataset, training, validation, masker, run.training.seed, layout, progress)
    write_marker(layout, "dataset", inputs, result)
    return result


def _sources(run: RunSpec) -> list[Any]:
    validation = run.dataset.validation
    return [run.dataset.source, *([validation.source] if isinstance(validation, ValidationSource) else [])]


def _tables_exist(layout: WorkspaceLayout) -> bool:
    return layout.training_table.is_file() and layout.validation_table.is_file()


def _remote_inputs(run: RunSpec, tokenizer: Path) -> str:
    return digest_of({"spec": run.spec_hash, "common": _common_inputs(run, tokenizer)})


def _inputs(run: RunSpec, tokenizer: Path, training: Path, validation: Path | None) -> str:
    files = [file_digest(path) for path in (training, validation) if path is not None]
    return digest_of({"files": files, "common": _common_inputs(run, tokenizer)})


def _common_inputs(run: RunSpec, tokenizer: Path) -> dict[str, Any]:
    template = run.model.chat_template_path
    return {
        "format": _DATASET_FORMAT,
        "dataset": run.dataset.model_dump(mode="json", exclude={"source"}),
        "arguments": run.model.chat_template_arguments,
        "template": None if template is None or not template.is_file() else file_digest(template),
        "tokenizer": {path.name: file_digest(path) for path in sorted(tokenizer.iterdir())},
        "maximumLength": run.training.maximum_length,
        "seed": run.training.seed,
        "tools": {
            name: importlib.metadata.version(name) for name in ("transformers", "tokenizers", "jinja2")
        },
    }
