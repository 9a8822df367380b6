"""PREPARE's last part: the dataset report as the head of the result, a JSON document and a page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetune_trainer.contract.result import StatisticsResult
from finetune_trainer.data.dataset.counts import DatasetReport
from finetune_trainer.model.adapter_targets import trainable_parameters
from finetune_trainer.model.layout import read_base_layout
from finetune_trainer.report.analysis import AnalysisSettings, analyze
from finetune_trainer.report.document import DatasetDocument
from finetune_trainer.report.model_warnings import ModelFacts, model_warnings
from finetune_trainer.report.page import render_html
from finetune_trainer.report.prompts import user_frame
from finetune_trainer.stages.prepare.dataset import DatasetRejectedError, ProvenDataset, make_template
from finetune_trainer.stages.prepare.vocabulary import largest_token
from finetune_trainer.workspace.digests import file_digest
from finetune_trainer.workspace.layout import (
    digest_of,
    read_marker,
    write_json_atomically,
    write_marker,
    write_text_atomically,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from finetune_trainer.contract.run_spec import RunSpec
    from finetune_trainer.data.chat_template.template import ChatTemplate
    from finetune_trainer.model.describe import BaseModel
    from finetune_trainer.telemetry.reporter import Reporter
    from finetune_trainer.workspace.layout import WorkspaceLayout

_VERSION = 2  # increase it if the same tables would give another report


def report_dataset(
    run: RunSpec,
    layout: WorkspaceLayout,
    proven: ProvenDataset,
    tokenizer: Path,
    progress: Reporter,
    redact: Callable[[str], str],
    base: BaseModel,
    ignored: Mapping[str, str],
) -> StatisticsResult:
    """Write the report on proven tables and return its head; reuse the report of an earlier process on equal inputs.

    The base model must be quantized already: its shape gives the adapter's size. `ignored` are its files that are not
    used, each with the reason. Raises StageError(InvalidDataset)
    if the target prompts cannot be read.
    """
    parameters = trainable_parameters(read_base_layout(layout), run.training.lora)
    targets = run.dataset.target_prompts_path
    inputs = digest_of(
        {
            "version": _VERSION,
            "digest": proven.result.digest,
            "parameters": parameters,
            "settings": _settings(run),
            "sources": proven.sources,
            "targets": file_digest(targets) if targets is not None and targets.is_file() else None,
            "model": [base.context, base.embedding_rows, dict(ignored)],
        }
    )
    done = StatisticsResult.read(read_marker(layout, "report", inputs))
    if done is not None and layout.dataset_page.is_file() and layout.dataset_report.is_file():
        return done
    template = make_template(run, tokenizer)
    analysis = analyze(
        layout.training_table,
        layout.validation_table,
        template.decode,
        AnalysisSettings(
            reports=tuple(proven.reports.values()),
            special_ids=template.special_ids,
            thresholds=run.dataset.thresholds,
            frame=user_frame(template),
            seed=run.training.seed,
            trainable_parameters=parameters,
            reasoning_is_plain_text=proven.reasoning_is_plain_text,
            target_prompts=targets,
            model_warnings=tuple(model_warnings(_facts(run, proven, template, base, ignored))),
            redact=redact,
        ),
        lambda rows, total: progress.update("AnalysingDataset", rows, total),
    )
    result = proven.result
    _write(
        layout,
        DatasetDocument(
            digest=result.digest,
            training_source=proven.sources["training"],
            training_rows=proven.reports["training"],
            analysis=analysis,
            settings=_settings(run),
            validation_source=proven.sources.get("validation"),
            validation_rows=proven.reports.get("validation"),
            format_name=result.format.name if result.format else "",
            format_reason=result.format.why if result.format else "",
            end_tokens=tuple((token.id, token.text) for token in result.end_tokens or ()),
        ),
    )
    head = analysis.summary()
    write_marker(layout, "report", inputs, head.document())
    return head


def _facts(
    run: RunSpec,
    proven: ProvenDataset,
    template: ChatTemplate,
    base: BaseModel,
    ignored: Mapping[str, str],
) -> ModelFacts:
    largest = largest_token(template, base.embedding_rows)
    return ModelFacts(
        maximum_length=run.training.maximum_length,
        longest_example=proven.result.longest_example,
        context=base.context,
        largest_token=largest,
        token_text=template.token_text(largest) or "",
        embedding_rows=base.embedding_rows,
        ignored_files=ignored,
    )


def report_rejection(run: RunSpec, layout: WorkspaceLayout, rejected: DatasetRejectedError) -> None:
    """Write the report on a rejected dataset: counts and rejected rows, but no statistics."""
    _write(
        layout,
        DatasetDocument(
            digest=None,
            training_source=rejected.sources["training"],
            training_rows=rejected.reports.get("training", DatasetReport()),
            analysis=None,
            settings=_settings(run),
            validation_source=rejected.sources.get("validation"),
            validation_rows=rejected.reports.get("validation"),
            refusal=rejected.message,
        ),
    )


def _write(layout: WorkspaceLayout, document: DatasetDocument) -> None:
    content = document.to_json()
    write_json_atomically(layout.dataset_report, content)
    write_text_atomically(layout.dataset_page, render_html(content))


def _settings(run: RunSpec) -> dict[str, Any]:
    """Return the settings of the run that shape the data, without the sources, which may be secret."""
    dataset = run.dataset.model_dump(
        mode="json", by_alias=True, exclude={"source", "validation", "target_prompts_path"}, exclude_none=True
    )
    training = run.training
    return {
        **dataset,
        "maximumLength": training.maximum_length,
        "seed": training.seed,
        "chatTemplateArguments": run.model.chat_template_arguments,
        "lora": training.lora.model_dump(mode="json", by_alias=True),
    }
