"""PREPARE's first half: fetch the rows, prove them, and write the tables."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_trainer.contract.result import EndToken, TablesResult
from finetune_trainer.contract.run_spec import FileSource, ValidationSource
from finetune_trainer.data.chat_template.render_date import pin_render_date
from finetune_trainer.data.chat_template.template import ChatTemplate, load_tokenizer
from finetune_trainer.data.dataset.builder import DatasetBuilder
from finetune_trainer.data.dataset.counts import DatasetReport
from finetune_trainer.data.dataset.row_source import RowSource, open_source
from finetune_trainer.data.dataset.token_use import token_use
from finetune_trainer.data.masking.masking import Masker
from finetune_trainer.data.rows.decompression import EXPANSION_FACTOR
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.generation import end_token_ids
from finetune_trainer.sources.dataset import Fetched, fetch_dataset
from finetune_trainer.stages.prepare.vocabulary import require_row_tokens, require_template_tokens
from finetune_trainer.workspace.digests import file_digest
from finetune_trainer.workspace.layout import digest_of, read_marker, write_marker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from finetune_trainer.contract.run_spec import RunSpec
    from finetune_trainer.data.conversations.conversation import Conversation
    from finetune_trainer.telemetry.reporter import Reporter
    from finetune_trainer.workspace.layout import WorkspaceLayout

_FORMAT = 3  # increase it if the same rows and tokenizer would give other ids or labels


@dataclass(frozen=True)
class ProvenDataset:
    """Tables on disk: their part of the result, and by source the counts of rows and the identity of the bytes.

    `reasoning_is_plain_text` is True if the template has no place for reasoning traces.
    """

    result: TablesResult
    reports: dict[str, DatasetReport]
    sources: dict[str, dict[str, Any]]
    reasoning_is_plain_text: bool


class DatasetRejectedError(StageError):
    """The dataset cannot be used. `reports` counts the rows that were read until then, by source."""

    def __init__(
        self, cause: StageError, reports: dict[str, DatasetReport], sources: dict[str, dict[str, Any]]
    ) -> None:
        super().__init__(cause.reason, cause.message)
        self.reports = reports
        self.sources = sources


def given_template(run: RunSpec) -> str | None:
    """Read the chat template that the job names. Raises StageError(ChatTemplateMissing) if it cannot be read."""
    if run.model.chat_template_path is None:
        return None
    try:
        return run.model.chat_template_path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StageError(
            Reason.CHAT_TEMPLATE_MISSING,
            f"model.chatTemplate must be a readable text file, found: {error}; check the ConfigMap or the file",
        ) from error


def make_template(run: RunSpec, tokenizer_folder: Path) -> ChatTemplate:
    """Build the run's chat template with its tokenizer. Raises StageError."""
    template = given_template(run)
    chat = ChatTemplate(load_tokenizer(tokenizer_folder), template, run.model.chat_template_arguments)
    return pin_render_date(chat, run.workspace.path)


def make_masker(run: RunSpec, tokenizer_folder: Path, samples: Iterable[Conversation] = ()) -> Masker:
    """Build the masker for the run's tokenizer, template and maximum length; see Masker. Raises StageError."""
    template = make_template(run, tokenizer_folder)
    length, mentions = run.training.maximum_length, run.dataset.control_tokens
    return Masker(template, length, end_token_ids(tokenizer_folder), samples, mentions)


def fetch_datasets(run: RunSpec, layout: WorkspaceLayout, progress: Reporter) -> dict[str, Fetched]:
    """Fetch the files of each dataset source, by its part: `training` and `validation`."""
    return {
        part: fetch_dataset(
            source,
            part,
            run.limits,
            layout.root / "download",
            lambda done, total: progress.update("FetchingDataset", done, total),
        )
        for part, source in _sources(run).items()
    }


def _open_datasets(
    run: RunSpec, layout: WorkspaceLayout, fetched: dict[str, Fetched]
) -> dict[str, RowSource]:
    """Detect the format of each part's rows. Raises StageError for files without a known format."""
    spool = layout.root / "download"
    spool.mkdir(parents=True, exist_ok=True)
    largest = run.limits.dataset_bytes * EXPANSION_FACTOR
    sources = {}
    for part, files in fetched.items():
        try:
            sources[part] = open_source(files.paths, run.dataset.format, largest, spool)
        except StageError as error:
            if part == "training":
                raise
            raise StageError(error.reason, f"dataset.validation.source: {error.message}") from error
    return sources


def prove_dataset(
    run: RunSpec,
    layout: WorkspaceLayout,
    tokenizer: Path,
    progress: Reporter,
    redact: Callable[[str], str],
    embedding_rows: int,
) -> ProvenDataset:
    """Build the tables, or return the earlier outcome if none of their inputs has changed.

    Raises StageError if the files cannot be fetched, and DatasetRejectedError if their rows cannot be used.
    """
    remote = any(not isinstance(source, FileSource) for source in _sources(run).values())
    if remote:
        # The content of a URL may have changed, but a finished step must not need a URL that has expired since.
        early = _finished(layout, _remote_inputs(run, tokenizer))
        if early is not None:
            return early
    progress.update("FetchingDataset", 0, None)
    fetched = fetch_datasets(run, layout, progress)
    content = digest_of(
        {
            "files": {part: [file_digest(path) for path in files.paths] for part, files in fetched.items()},
            "common": _common_inputs(run, tokenizer),
        }
    )
    inputs = _remote_inputs(run, tokenizer) if remote else content
    done = _finished(layout, inputs)
    if done is not None:
        return done
    identities = {part: files.identity for part, files in fetched.items()}
    try:
        sources = _open_datasets(run, layout, fetched)
    except StageError as error:
        raise DatasetRejectedError(error, {}, identities) from error
    masker = make_masker(run, tokenizer, sources["training"].first_conversations(run.dataset.reasoning))
    require_template_tokens(masker.template, embedding_rows)
    builder = DatasetBuilder(run.dataset, masker, run.training.seed, layout, content, progress, redact)
    try:
        built = builder.build(sources["training"], sources.get("validation"))
    except StageError as error:
        reports = builder.reports()
        builder.close()
        raise DatasetRejectedError(error, reports, identities) from error
    use = token_use((layout.training_table, layout.validation_table))
    require_row_tokens(use, masker.template, embedding_rows)
    ends = tuple(EndToken(id=end, text=masker.template.token_text(end) or "") for end in use.ends)
    found: dict[str, Any] = {"source": identities["training"], "end_tokens": ends}
    if "validation" in identities:
        found["validation_source"] = identities["validation"]
    result = built.result.model_copy(update=found)
    outcome = {
        "result": result.document(),
        "reports": {part: report.to_state() for part, report in built.reports.items()},
        "sources": identities,
        "reasoning_is_plain_text": masker.reasoning_is_plain_text,
    }
    write_marker(layout, "dataset", inputs, outcome)
    builder.discard_parts()
    return ProvenDataset(result, built.reports, identities, masker.reasoning_is_plain_text)


def _finished(layout: WorkspaceLayout, inputs: str) -> ProvenDataset | None:
    done = read_marker(layout, "dataset", inputs)
    if done is None or not (layout.training_table.is_file() and layout.validation_table.is_file()):
        return None
    result = TablesResult.read(done["result"])
    if result is None:
        return None
    reports = {part: DatasetReport.from_state(state) for part, state in done["reports"].items()}
    return ProvenDataset(result, reports, done["sources"], done["reasoning_is_plain_text"])


def _sources(run: RunSpec) -> dict[str, Any]:
    validation = run.dataset.validation
    held_out = {"validation": validation.source} if isinstance(validation, ValidationSource) else {}
    return {"training": run.dataset.source, **held_out}


def _remote_inputs(run: RunSpec, tokenizer: Path) -> str:
    return digest_of({"spec": run.spec_hash, "common": _common_inputs(run, tokenizer)})


def _common_inputs(run: RunSpec, tokenizer: Path) -> dict[str, Any]:
    template = run.model.chat_template_path
    unrelated = {"source", "thresholds", "target_prompts_path"}
    return {
        "format": _FORMAT,
        "dataset": run.dataset.model_dump(mode="json", exclude=unrelated),
        "arguments": run.model.chat_template_arguments,
        "template": None if template is None or not template.is_file() else file_digest(template),
        "tokenizer": {path.name: file_digest(path) for path in sorted(tokenizer.iterdir())},
        "maximumLength": run.training.maximum_length,
        "seed": run.training.seed,
        "tools": {
            name: importlib.metadata.version(name) for name in ("transformers", "tokenizers", "jinja2")
        },
    }
