"""The origin of published artifacts, for programs: manifest.json of the destination, contract/manifest.schema.json."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import re
from typing import TYPE_CHECKING, Any

from finetune_trainer.contract.naming import base_model_name
from finetune_trainer.contract.timestamps import rfc3339, utc_now
from finetune_trainer.workspace.destination import REPORT_FOLDER
from finetune_trainer.workspace.digests import digest_of_files

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from finetune_trainer.contract.result import ArtifactResult, PublishedResult
    from finetune_trainer.contract.run_spec import RunSpec
    from finetune_trainer.stages.merge.publish import SealedFile

VERSION = "1.2"
ROUNDING = {"TrainedWeights": "Nearest", "OriginalWeights": "Stochastic"}
"""Rule by which the sum of weight and update is rounded once, by `output.mergeOnto`."""
IMAGE_VARIABLE = "FINETUNE_IMAGE"
_TOOLS = (
    "torch",
    "transformers",
    "tokenizers",
    "trl",
    "peft",
    "bitsandbytes",
    "safetensors",
    "numpy",
    "numba",
    "finetune",
)
_PINNED = re.compile(r"@(sha256:[0-9a-f]{64})$")


def manifest_document(
    run: RunSpec,
    results: PublishedResult,
    files: Mapping[str, SealedFile],
    survival: Mapping[str, tuple[float, float]] | None = None,
    original_digest: str | None = None,
    environment: Mapping[str, str] = os.environ,
) -> dict[str, Any]:
    """Return the manifest as JSON.

    `files` has digest and size by path in the destination. `survival` has, for each merged tensor, the share of its
    update that the written values hold, by projection, and the relative error of the written update. `original_digest` is
    that of the base's own weight files if the workspace kept them. `environment` may name the image of this process.
    """
    prepare = results.prepare
    merge = merge_document(run, survival or {}) if "Merged" in run.output.artifacts else None
    return {
        "version": VERSION,
        "specHash": run.spec_hash,
        "contentDigest": content_digest(files),
        "job": {"namespace": run.job.namespace, "name": run.job.name, "uid": run.job.uid},
        "publicationTime": rfc3339(utc_now()),
        "base": {
            "name": base_model_name(run),
            "commit": prepare.model.commit,
            "architecture": prepare.model.architecture,
            "parameters": prepare.model.parameters,
            "originalDigest": original_digest,
            "quantizedDigest": prepare.model.digest,
            "asTrainedDigest": base_as_trained_digest(results.merge.artifacts),
        },
        "datasetDigest": prepare.dataset.digest,
        "dataset": _dataset(results),
        "spec": spec_document(run),
        "seeds": seeds_of(run),
        "chatTemplateArguments": run.model.chat_template_arguments,
        "training": run.training.model_dump(mode="json", by_alias=True),
        "gate": run.evaluation.gate,
        "evaluation": results.train.evaluation.document(),
        "merge": merge,
        "image": image_of(environment),
        "tools": {**tool_versions(), "python": platform.python_version()},
        "files": dict(files),
        "results": results.document(),
    }


def content_digest(files: Mapping[str, SealedFile]) -> str:
    """Return the digest over path and digest of every file outside the report, which tells of times and speeds.

    On a CPU, two runs of one spec have the same.
    """
    return digest_of_files(
        {name: file["digest"] for name, file in files.items() if not name.startswith(f"{REPORT_FOLDER}/")}
    )


def spec_document(run: RunSpec) -> dict[str, Any]:
    """Return what the run spec asks for, without paths, addresses and variables of the machine that ran it."""
    dataset = run.dataset.model_dump(
        mode="json", by_alias=True, exclude={"source", "validation", "target_prompts_path"}
    )
    source = run.model.source
    return {
        "model": {
            "source": source.kind,
            "name": base_model_name(run),
            "revision": getattr(source, "revision", None),
            "chatTemplateArguments": run.model.chat_template_arguments,
            "ownChatTemplate": run.model.chat_template_path is not None,
        },
        "dataset": {
            **dataset,
            "source": run.dataset.source.kind,
            "validationFraction": getattr(run.dataset.validation, "fraction", None),
        },
        "training": run.training.model_dump(mode="json", by_alias=True),
        "evaluation": run.evaluation.model_dump(mode="json", by_alias=True),
        "output": {
            "artifacts": list(run.output.artifacts),
            "dtype": run.output.dtype,
            "mergeOnto": run.output.merge_onto,
        },
        "device": run.device,
    }


def seeds_of(run: RunSpec) -> dict[str, int | None]:
    """Return the seed of each random choice; null if the run makes no such choice.

    Stochastic rounding derives its numbers from the seed, the tensor and the position.
    """
    seed = run.training.seed
    stochastic = "Merged" in run.output.artifacts and ROUNDING[run.output.merge_onto] == "Stochastic"
    return {
        "split": seed if hasattr(run.dataset.validation, "fraction") else None,
        "training": seed,
        "bootstrap": seed,
        "rounding": seed if stochastic else None,
    }


def image_of(environment: Mapping[str, str]) -> dict[str, str | None] | None:
    """Return the image that this process runs in, and its digest if the reference has one; null outside a cluster."""
    reference = environment.get(IMAGE_VARIABLE)
    if not reference:
        return None
    pinned = _PINNED.search(reference)
    return {"reference": reference, "digest": pinned[1] if pinned else None}


def tool_versions() -> dict[str, str]:
    """Return the versions of the packages that decide the bytes of an artifact."""
    versions = {}
    for name in _TOOLS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # finetune itself runs from sources, too
            continue
    return versions


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


def _dataset(results: PublishedResult) -> dict[str, Any]:
    """Return digest, counts and origin of the rows; the results have the text of some rows, too."""
    found = results.prepare.dataset
    return {
        "digest": found.digest,
        "source": found.source,
        "validationSource": found.validation_source,
        "format": found.format.name if found.format is not None else None,
        "rows": found.rows,
        "kept": found.kept,
        "duplicates": found.duplicates,
        "rejected": dict(found.rejected),
        "trainingExamples": found.training_examples,
        "validationExamples": found.validation_examples,
        "supervisedTokens": found.supervised_tokens,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
