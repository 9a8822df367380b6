"""The inputs of `finetune plan`: the job, the model's shape, the software and the GPUs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from finetune_operator.api.quantities import GIB
from finetune_operator.api.spec import FineTuneJobSpec, Resources
from finetune_operator.api.validation import check
from finetune_operator.contract.refusals import refused_file, refused_tensor
from finetune_operator.sizing.cost.work import Rows, known_rows
from finetune_operator.sizing.gpus.gpu import Gpu, Offer
from finetune_operator.sizing.gpus.nodes import NodeRecord, project_node
from finetune_operator.sizing.gpus.products import PRODUCTS, find_product
from finetune_operator.sizing.gpus.profiles import GpuProfile, GpuProfileError, parse_gpu_profiles
from finetune_operator.sizing.memory.stack import StackProfile

from finetune_cli.errors import UsageError
from finetune_cli.manifests import read_documents, read_manifests
from finetune_cli.run.local import LocalFolders
from finetune_cli.settings import apply_setting

_Parsed = TypeVar("_Parsed")

DEFAULT_JOB: Mapping[str, Any] = {
    "model": {"source": {"persistentVolumeClaim": {"claimName": "model"}}},
    "dataset": {"source": {"persistentVolumeClaim": {"claimName": "dataset", "path": "rows.jsonl"}}},
    "output": {"destination": {"persistentVolumeClaim": {"claimName": "output"}}},
}
"""A job in which every field that decides memory has its default."""


def read_spec(file: Path | None, name: str | None, settings: Sequence[str]) -> FineTuneJobSpec:
    """Read the spec of a file, or of a job with default values, and apply `settings` (PATH=VALUE).

    Raises UsageError or InvalidSpecError.
    """
    job, spec = "plan", deepcopy(dict(DEFAULT_JOB))
    if file is not None:
        manifests = read_manifests(file, name)
        job, spec = manifests.name, deepcopy(dict(manifests.spec))
    for setting in settings:
        apply_setting(spec, setting)
    parsed = FineTuneJobSpec.parse(spec)
    check(job, parsed)
    return parsed


def model_source(
    model: Path | None, spec: FineTuneJobSpec, folders: LocalFolders, *, from_file: bool
) -> Path:
    """Return the model's folder, or its config.json. Raises UsageError if neither is known."""
    if model is not None:
        return model
    claim = spec.model.source.persistent_volume_claim
    if claim is None or not from_file:
        raise UsageError(
            "the model's shape must be known: pass --model FOLDER, a folder with its config.json (for a model on a "
            "hub or in a bucket, download only that file)"
        )
    return folders.claim(claim.claim_name) / claim.path


def refused_files(source: Path) -> str | None:
    """Return the message about files of a model's folder that the trainer refuses; None if there are none.

    The index of the weights is read if the folder has one.
    """
    if not source.is_dir():
        return None
    refused = refused_file(path.name for path in source.iterdir() if path.is_file())
    if refused is None:
        refused = refused_tensor(_indexed_tensors(source / "model.safetensors.index.json"))
    return None if refused is None else refused.message


def _indexed_tensors(path: Path) -> tuple[str, ...]:
    """Return the names of the tensors in an index. PREPARE rejects an index that cannot be read."""
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return ()
    return tuple(names) if isinstance(names, dict) else ()


def read_config(model: Path | None, spec: FineTuneJobSpec, folders: LocalFolders, *, from_file: bool) -> Any:
    """Read the model's config.json. Raises UsageError if it is missing or not a JSON object."""
    source = model_source(model, spec, folders, from_file=from_file)
    path = source / "config.json" if source.is_dir() else source
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} must be the model's config.json: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} must be JSON: {error}") from error
    if not isinstance(config, dict):
        raise UsageError(f"{path} must be a JSON object, found {type(config).__name__}")
    return config


def read_mapping(path: Path, member: str, parse: Callable[[Mapping[str, Any]], _Parsed]) -> _Parsed:
    """Read a file with `parse`, or its `member` if it is a whole values file of the chart.

    Raises UsageError.
    """
    document = _single(path)
    found = document
    for step in member.split("."):
        if isinstance(found, Mapping) and isinstance(found.get(step), Mapping):
            found = found[step]
    if not isinstance(found, Mapping):
        raise UsageError(f"{path} must be a mapping, found {type(found).__name__}")
    try:
        return parse(found)
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error


def described_rows(spec: FineTuneJobSpec, rows: int | None, tokens: int | None, longest: int) -> Rows | None:
    """Describe the data from `--rows`, `--tokens` and the longest row; None without a number of rows.

    Rows to validate on are those that the spec splits off, or as many as it evaluates if they have a source of their own.
    Raises UsageError.
    """
    if tokens is not None and rows is None:
        raise UsageError("--tokens must come with --rows, the number of rows that have these tokens")
    if rows is None:
        return None
    if tokens is not None and not rows <= tokens <= rows * longest:
        raise UsageError(
            f"--tokens must be from {rows} to {rows * longest}, the tokens of {rows} rows of 1 to {longest} tokens, "
            f"found {tokens}"
        )
    fraction = spec.dataset.validation.fraction
    held_out = (
        spec.evaluation.maximum_rows if fraction is None else round(rows * fraction / max(1 - fraction, 0.01))
    )
    return known_rows(rows, held_out, longest, tokens=tokens)


def read_profiles(path: Path) -> tuple[GpuProfile, ...]:
    """Read the chart's gpuProfiles from a list or from a values file. Raises UsageError."""
    document = _single(path)
    if isinstance(document, Mapping):
        document = document.get("gpuProfiles")
    try:
        return parse_gpu_profiles(document)
    except GpuProfileError as error:
        raise UsageError(f"{path}: {error}") from error


def read_nodes(path: Path) -> list[NodeRecord]:
    """Read the output of `kubectl get nodes -o json` or `-o yaml`. Raises UsageError."""
    return nodes_of(_single(path), str(path))


def nodes_of(document: Any, source: str) -> list[NodeRecord]:
    """The nodes of a NodeList or of one Node. Raises UsageError."""
    kind = document.get("kind") if isinstance(document, Mapping) else type(document).__name__
    items = [document] if kind == "Node" else document.get("items") if isinstance(document, Mapping) else None
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        raise UsageError(f"{source} must be the output of kubectl get nodes -o json, found {kind!r}")
    nodes = [item for item in items if item.get("kind", "Node") == "Node"]
    if len(nodes) < len(items):
        raise UsageError(f"{source} must contain only nodes, found other kinds")
    return [project_node(node) for node in nodes]


GPUS_OF_A_MACHINE = 8
"""As most machines for training have."""


def named_offers(
    names: Sequence[str],
    memory: float | None,
    resource_name: str,
    stack: StackProfile,
    resources: Resources | None = None,
) -> tuple[Offer, ...]:
    """The named GPUs as offers without a node, each of a machine with the GPUs that the job asks for.

    Raises UsageError for a GPU that no table lists.
    """
    if memory is not None:
        if not 0 < memory < 1 << 20:
            raise UsageError(f"--gpu-memory must be a number of GiB above 0, found {memory}")
        if len(names) > 1:
            raise UsageError(f"--gpu-memory must have at most one --gpu, found {len(names)}")
        gpus = [_of_memory(names[0] if names else None, round(memory * GIB), stack)]
    else:
        gpus = [_product(name) for name in names]
    count = 1
    if resources is not None:
        count = resources.gpus_per_node or min(resources.maximum_gpus or resources.gpus, GPUS_OF_A_MACHINE)
    return tuple(Offer(gpu, resource_name, count) for gpu in gpus)


def _of_memory(name: str | None, usable_bytes: int, stack: StackProfile) -> Gpu:
    known = None if name is None else find_product(name)
    return Gpu(
        name or f"a GPU of {usable_bytes / GIB:g} GiB",
        stack.vendor if known is None else known.vendor,
        usable_bytes,
        compute_capability=None if known is None else known.compute_capability,
        source="--gpu-memory",
    )


def _product(name: str) -> Gpu:
    gpu = find_product(name)
    if gpu is None:
        products = [product.product for product in PRODUCTS]
        near = get_close_matches(name, products, n=3, cutoff=0.5)
        meant = f" (perhaps {', '.join(near)})" if near else ""
        raise UsageError(
            f"--gpu must be a known product, found {name!r}{meant}; add --gpu-memory GIB for any other GPU. "
            f"Known products: {', '.join(products)}"
        )
    return gpu


def _single(path: Path) -> Any:
    documents = read_documents(path)
    if len(documents) != 1:
        raise UsageError(f"{path} must have one document, found {len(documents)}")
    return documents[0]
