"""MERGE: write the merged weights, verify them against the trained model, and publish."""

from __future__ import annotations

import logging
from shutil import copyfile, copytree
from typing import TYPE_CHECKING, TypeVar

import transformers

from finetune_trainer.contract.result import ArtifactResult, MergeResult, PrepareResult, PublishedResult
from finetune_trainer.contract.train_result import TrainResult
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.evaluation.gate import require_passed
from finetune_trainer.model.artifact_size import artifact_bytes
from finetune_trainer.model.layout import read_base_layout
from finetune_trainer.quantization.original import find_original
from finetune_trainer.report.job_page import write_job_report
from finetune_trainer.report.merge_page import merge_report, write_merge_report
from finetune_trainer.stages.merge.artifact import copy_adapter, copy_small_files
from finetune_trainer.stages.merge.card import model_card
from finetune_trainer.stages.merge.card_metadata import base_license
from finetune_trainer.stages.merge.findings import with_findings
from finetune_trainer.stages.merge.manifest import base_as_trained_digest, manifest_document, merge_document
from finetune_trainer.stages.merge.original_loss import OriginalLoss, adapter_on_original_loss
from finetune_trainer.stages.merge.proof import Proof, prove_artifact
from finetune_trainer.stages.merge.publish import (
    SealedFile,
    discard_staging,
    open_staging,
    publish,
    seal,
)
from finetune_trainer.stages.merge.reference import open_reference
from finetune_trainer.stages.merge.shards import write_index
from finetune_trainer.stages.merge.signing import read_signing_key
from finetune_trainer.stages.merge.statement import write_statement
from finetune_trainer.stages.merge.weight_folders import stored_dtype, stored_layout, write_weights
from finetune_trainer.workspace.completed import published_results
from finetune_trainer.workspace.destination import (
    FOLDERS,
    JOURNAL,
    PROVENANCE_FOLDER,
    REPORT_FOLDER,
    fault_behind,
    publishing_alone,
    require_space,
    writing_to,
)
from finetune_trainer.workspace.digests import digest_of_files, folder_digests
from finetune_trainer.workspace.kept_logs import stored_logs
from finetune_trainer.workspace.layout import WorkspaceLayout, read_marker, write_marker

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from finetune_trainer.contract.result import EndToken
    from finetune_trainer.contract.run_spec import ArtifactKind, RunSpec
    from finetune_trainer.stages.merge.signing import SigningKey
    from finetune_trainer.stages.merge.weight_folders import WeightsKind
    from finetune_trainer.telemetry.reporter import Reporter

_log = logging.getLogger(__name__)
_README = "README.md"
_Earlier = TypeVar("_Earlier", PrepareResult, TrainResult)


def merge(run: RunSpec, progress: Reporter) -> MergeResult:
    """Merge, verify and publish the run's artifacts; return the `merge` member of the result.

    It is safe to run this again at any point. Raises StageError: WithheldByGate (before the destination is read),
    AdapterUntrained, QuantizationMismatch, ArtifactVerificationFailed (nothing is published then),
    DestinationUnwritable.
    """
    workspace = WorkspaceLayout(run.workspace.path)
    _require_gate(run, TrainResult.read(read_marker(workspace, "train", run.spec_hash)))
    published = published_results(run)
    _require_gate(run, published.train if published is not None else None)
    done = MergeResult.read(read_marker(workspace, "merge", run.spec_hash))
    if done is not None and published is not None:
        return done
    result = _publish_once(run, workspace, progress) if published is None else published.merge
    try:
        write_marker(workspace, "merge", run.spec_hash, result.document())
    except OSError as error:
        _log.warning("the workspace cannot keep MERGE's marker, but the manifest is enough: %s", error)
    return result


def _require_gate(run: RunSpec, trained: TrainResult | None) -> None:
    """Raise StageError(WithheldByGate) if the gate withholds what `trained` describes; None has no verdict yet."""
    if trained is not None:
        require_passed(run.evaluation.gate, trained.evaluation)


def _publish_once(run: RunSpec, workspace: WorkspaceLayout, progress: Reporter) -> MergeResult:
    destination = run.output.destination.path
    with publishing_alone(destination):
        try:
            return _merge(run, workspace, destination, progress)
        except Exception as error:
            fault = fault_behind(error, destination)
            if fault is None:
                raise
            discard_staging(destination, run.spec_hash)
            raise fault from error


def _merge(run: RunSpec, workspace: WorkspaceLayout, destination: Path, progress: Reporter) -> MergeResult:
    transformers.utils.logging.disable_progress_bar()
    prepared = _earlier_result(PrepareResult, "prepare", run, workspace)
    trained = _earlier_result(TrainResult, "train", run, workspace)
    if digest_of_files(folder_digests(workspace.adapter)) != trained.adapter_digest:
        raise StageError(
            Reason.ARTIFACT_VERIFICATION_FAILED,
            "the adapter in the workspace must be the one that TRAIN saved, its digest differs; run the job again",
        )
    # Before anything is written: a merge takes long, and nothing is published without the signature.
    key = None if run.output.signing is None else read_signing_key(run.output.signing.key_path)
    # A PREPARE before contract 1.3 did not report them.
    ends = prepared.dataset.end_tokens or ()
    staging = open_staging(destination, run.spec_hash)
    try:
        require_space(destination, artifact_bytes(run, workspace))
        proof = original = None
        known: dict[ArtifactKind, dict[str, SealedFile]] = {}
        if "Merged" in run.output.artifacts:
            known["Merged"] = _write_model(run, workspace, prepared, staging, "Merged", ends, progress)
            layout = stored_layout(run, workspace, "Merged")
            with open_reference(run, workspace, layout) as reference:
                folder = staging / FOLDERS["Merged"]
                proof = prove_artifact(workspace, folder, layout, reference, ends, progress)
        if "BaseAsTrained" in run.output.artifacts:
            known["BaseAsTrained"] = _write_model(
                run, workspace, prepared, staging, "BaseAsTrained", ends, progress
            )
            original = _original_loss(workspace, prepared, proof, progress)
        if "Adapter" in run.output.artifacts:
            with writing_to(destination):
                copy_adapter(workspace, staging / FOLDERS["Adapter"], [token.id for token in ends])
        with writing_to(destination):
            if workspace.report.is_dir():  # a workspace from an older image has no report
                copytree(workspace.report, staging / REPORT_FOLDER)
        return _publish(run, workspace, staging, prepared, trained, proof, original, known, key, progress)
    except StageError:
        discard_staging(destination, run.spec_hash)
        raise


def _earlier_result(part: type[_Earlier], stage: str, run: RunSpec, workspace: WorkspaceLayout) -> _Earlier:
    result = part.read(read_marker(workspace, stage, run.spec_hash))
    if result is None:
        raise StageError(
            Reason.INTERNAL_ERROR,
            f"{stage.upper()} must have finished in this workspace for this spec, found no marker of it",
        )
    return result


def _write_model(
    run: RunSpec,
    workspace: WorkspaceLayout,
    prepared: PrepareResult,
    staging: Path,
    kind: WeightsKind,
    ends: Sequence[EndToken],
    progress: Reporter,
) -> dict[str, SealedFile]:
    """Write weights and small files of the merged model, or of the base as it was trained on.

    Returns the weight files with the digests that were taken while they were written.
    """
    folder = staging / FOLDERS[kind]
    layout = stored_layout(run, workspace, kind)
    progress.update("Merging", 0, layout.bytes)
    with writing_to(folder):
        written = write_weights(
            run,
            workspace,
            kind,
            prepared.model.digest,
            folder,
            staging / JOURNAL,
            lambda done, total: progress.update("Merging", done, total),
        )
        dtype = stored_dtype(run, kind)
        copy_small_files(workspace.base, folder, dtype, [token.id for token in ends])
        write_index(folder, layout, resized=layout.bytes != read_base_layout(workspace).bytes)
    return {name: {"digest": record.digest, "bytes": record.bytes} for name, record in written.items()}


def _original_loss(
    workspace: WorkspaceLayout, prepared: PrepareResult, proof: Proof | None, progress: Reporter
) -> OriginalLoss | None:
    """Measure the adapter on the original base; None if an older PREPARE kept no original weights."""
    if proof is not None and proof.result.adapter_on_original_loss is not None:
        return OriginalLoss(proof.result.trained_loss, proof.result.adapter_on_original_loss)
    if find_original(workspace.original, prepared.model.digest) is None:
        _log.warning("the workspace has no original weights, so the adapter's loss on them is not known")
        return None
    progress.update("Verifying", 0, None)
    found = adapter_on_original_loss(workspace, read_base_layout(workspace), progress)
    _log.info(
        "adapter on the original base: loss %.4f, on the base as trained %.4f", found.original, found.trained
    )
    return found


def _publish(
    run: RunSpec,
    workspace: WorkspaceLayout,
    staging: Path,
    prepared: PrepareResult,
    trained: TrainResult,
    proof: Proof | None,
    original: OriginalLoss | None,
    known: Mapping[ArtifactKind, Mapping[str, SealedFile]],
    key: SigningKey | None,
    progress: Reporter,
) -> MergeResult:
    """Add cards and the report, seal, state and publish all folders; return the `merge` member of the result."""
    destination = run.output.destination.path
    verification = with_findings(proof.result) if proof is not None else None
    if verification is not None and original is not None:
        verification = verification.model_copy(update={"adapter_on_original_loss": original.original})
    survival = proof.survival if proof is not None else {}
    for warning in (verification.warnings if verification is not None else None) or ():
        _log.warning("%s: %s", warning.code, warning.message)
    # The base as trained comes first, because the adapter's card names its digest.
    kinds = sorted(run.output.artifacts, key=lambda kind: kind != "BaseAsTrained")
    progress.update("Publishing", 0, len(kinds))
    artifacts: dict[ArtifactKind, ArtifactResult] = {}
    files: dict[str, SealedFile] = {}
    licensed = base_license(workspace.base)
    with writing_to(destination):
        for done, kind in enumerate(kinds, start=1):
            folder = staging / FOLDERS[kind]
            base = base_as_trained_digest(artifacts.values())
            card = model_card(run, kind, prepared, trained, verification, base, original, licensed)
            (folder / _README).write_text(card, encoding="utf-8")
            sealed = seal(folder, known.get(kind))
            files |= {f"{FOLDERS[kind]}/{name}": file for name, file in sealed.items()}
            artifacts[kind] = ArtifactResult(
                kind=kind,
                uri=f"{run.output.destination.uri.rstrip('/')}/{FOLDERS[kind]}",
                digest=digest_of_files({name: file["digest"] for name, file in sealed.items()}),
                bytes=sum(file["bytes"] for file in sealed.values()),
                files=len(sealed),
                **({"base_digest": base} if kind == "Adapter" and base is not None else {}),
            )
            progress.update("Publishing", done, len(kinds))
        if verification is not None:
            write_merge_report(
                staging / REPORT_FOLDER,
                merge_report(run, trained, verification, merge_document(run, survival)),
            )
        result = MergeResult(
            artifacts=tuple(artifacts[kind] for kind in run.output.artifacts), verification=verification
        )
        folders = [FOLDERS[kind] for kind in kinds]
        if (staging / REPORT_FOLDER).is_dir():
            _write_page(run, workspace, result, staging / REPORT_FOLDER)
            report = seal(staging / REPORT_FOLDER)
            files |= {f"{REPORT_FOLDER}/{name}": file for name, file in report.items()}
            folders.append(REPORT_FOLDER)
    results = PublishedResult(prepare=prepared, train=trained, merge=result)
    manifest = manifest_document(
        run, results, files, survival, find_original(workspace.original, prepared.model.digest)
    )
    with writing_to(destination):
        manifest = write_statement(staging / PROVENANCE_FOLDER, manifest, key)
    publish(destination, [*folders, PROVENANCE_FOLDER], manifest)
    return result


def _write_page(run: RunSpec, workspace: WorkspaceLayout, result: MergeResult, folder: Path) -> None:
    """Write the page on the whole job. What an earlier trainer left may lack something; that withholds no artifact."""
    try:
        for log in stored_logs(workspace.logs):
            copyfile(log.path, folder / log.path.name)
        write_job_report(run, workspace, known={"merge": result.document()}, folder=folder)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 -- see above
        _log.warning("the report on the job cannot be written: %s: %s", type(error).__name__, error)
