"""The origin of published artifacts, for programs: manifest.json of the destination."""

from __future__ import annotations

import importlib.metadata
import math
from typing import TYPE_CHECKING, Any

from finetune_trainer.contract.timestamps import rfc3339, utc_now
from finetune_trainer.model.naming import base_model_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from finetune_trainer.contract.result import ArtifactResult, PublishedResult
    from finetune_trainer.contract.run_spec import RunSpec
    from finetune_trainer.stages.merge.publish import SealedFile

ROUNDING = {"TrainedWeights": "Nearest", "OriginalWeights": "Stochastic"}
"""Rule by which the sum of weight and update is rounded once, by `output.mergeOnto`."""
_TOOLS = ("torch", "transformers", "trl", "peft", "bitsandbytes", "safetensors")


def manifest_document(
    run: RunSpec,
    results: PublishedResult,
    files: Mapping[str, SealedFile],
    survival: Mapping[str, tuple[float, float]] | None = None,
) -> dict[str, Any]:
    """Return the manifest as JSON.

    `files` has digest and size by path in the destination. `survival` has, for each merged tensor, the share of its
    update that the written values hold, by projection, and the relative error of the written update.
    """
    prepare = results.prepare
    merge = merge_document(run, survival or {}) if "Merged" in run.output.artifacts else None
    return {
        "version": "1.1",
        "specHash": run.spec_hash,
        "job": {"namespace": run.job.namespace, "name": run.job.name, "uid": run.job.uid},
        "publicationTime": rfc3339(utc_now()),
        "base": {
            "name": base_model_name(run),
            "commit": prepare.model.commit,
            "quantizedDigest": prepare.model.digest,
            "asTrainedDigest": base_as_trained_digest(results.merge.artifacts),
        },
        "datasetDigest": prepare.dataset.digest,
        "chatTemplateArguments": run.model.chat_template_arguments,
        "training": run.training.model_dump(mode="json", by_alias=True),
        "gate": run.evaluation.gate,
        "merge": merge,
        "tools": {name: importlib.metadata.version(name) for name in _TOOLS},
        "files": dict(files),
        "results": results.document(),
    }


def merge_document(run: RunSpec, survival: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """Return how the merged weights were made, with the survival of each tensor's update. Unknown numbers are null."""
    return {
        "onto": run.output.merge_onto,
        "dtype": run.output.dtype,
        "rounding": ROUNDING[run.output.merge_onto],
        "tensors": {
            name: {"projection": _finite(projection), "relativeError": _finite(error)}
            for name, (projection, error) in sorted(survival.items())
        },
    }


def base_as_trained_digest(artifacts: Iterable[ArtifactResult]) -> str | None:
    """Return the digest of the base as trained among `artifacts`; None if it is not published."""
    return next((artifact.digest for artifact in artifacts if artifact.kind == "BaseAsTrained"), None)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
