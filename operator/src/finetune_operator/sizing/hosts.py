"""Host resources of each stage: CPU, memory and scratch space, and the size of the shared workspace.

Constants marked "measured" were measured on this trainer (benchmarks/prepare, tests/unit/trainer). The others name their
source. Each sum is raised by a quarter, because the kernel kills a process at its limit.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, Protocol

from finetune_operator.api.plan import Optimizer
from finetune_operator.api.quantities import binary_size, format_bytes, parse_bytes
from finetune_operator.api.spec import FineTuneJobSpec, StageResources
from finetune_operator.api.stages import Stage
from finetune_operator.contract.dataset_report import DatasetReport
from finetune_operator.sizing.memory.shape import ModelShape

DEFAULT_WORKSPACE_SIZE = "20Gi"
"""Size of the workspace if the model's shape is unknown and the spec sets no size."""
RETRY_FACTOR = (3, 2)
"""Growth of a stage's memory after the kernel killed it for lack of memory, as a fraction."""

_MIB, _GIB = 1 << 20, 1 << 30
_MARGIN = (5, 4)

_PROOF = 825_000_000
"""Measured: PREPARE with two proof workers, all processes, for any number of rows."""
_REPORT_PER_ROW = 500
"""Measured: the report over 1,000,000 rows took 1,277 MB, 452 bytes a row more than the proof."""
_ASSUMED_ROWS = 2_000_000
_QUANTIZING = 556_000_000
"""Measured with an embedding of 4.3 GB in float32: tensors of any size are quantized slice by slice.

Before that, a trace takes 650 MB beside the 556 MB of PREPARE's own process, which is less than this and the proof."""

_CUDA_PROCESS = 4 * _GIB
"""Interpreter, torch, cuBLAS and bitsandbytes with their CUDA libraries mapped. Assumed, because no GPU was available."""
_CPU_PROCESS = 1_000_000_000
"""Interpreter, torch for CPUs, transformers, peft and TRL. Measured with SmolLM2-135M, its model included: TRAIN
1,275 MB, MERGE 1,193 MB of anonymous memory, PREPARE 721 MB."""
_LOADING_WORKERS = 4
"""Tensors of a quantized model that transformers 5 reads at one time."""
_PAGED_BYTES = 8
"""Optimizer state for each adapter parameter at most; paged states move to the host when the GPU is full."""
_COPY_BYTES: dict[Optimizer, int] = {"AdamW": 12, "AdamW8Bit": 8, "PagedAdamW8Bit": 8}
"""Copy of the training state for each adapter parameter at most, while a checkpoint is written: the value in 32 bits, and
two moments in 32 bits, or in 8 bits with their scales (6.1 bytes in all)."""
_OPTIMIZERS = tuple(_COPY_BYTES)
_LOGITS = 1 << 25
"""Logits that the trainer scores at one time, in float32. Their probabilities and a sum each take as much."""
_SHARED_MEMORY = 256 * _MIB
"""The trainer loads rows in one process and uses one GPU, so it shares nothing large."""

_SCRATCH = {Stage.PREPARE: 2 * _GIB, Stage.TRAIN: 1 * _GIB, Stage.MERGE: 1 * _GIB}
"""Library caches below HOME. Everything large goes to the workspace."""
_CPU = {Stage.PREPARE: 2, Stage.TRAIN: 2, Stage.MERGE: 2}
"""For each process.

PREPARE proves in two processes, training has a Python and an autograd thread, and merging reads while it writes."""

_LARGEST_FILE = 5_000_000_000
"""Bytes of a weight file by the hub's convention. Each one is downloaded, quantized and deleted before the next."""
_SMALL_FILES = 128 * _MIB
"""Tokenizer and config, at most four copies."""
_CHECKPOINTS = 3
"""Two are kept, and the next one is written before the older one is removed."""


class ResourceDefaults(Protocol):
    """The administrator's sizes for one stage; None if the operator computes them."""

    @property
    def cpu(self) -> str | None:
        """CPU request."""

    @property
    def memory(self) -> str | None:
        """Memory request and limit."""


@dataclass(frozen=True)
class HostNeeds:
    """Requests of one stage's pod; sizes in bytes.

    `cpu` is a Kubernetes quantity. `memory_bytes` is request and limit, and includes `shared_memory_bytes` because
    /dev/shm is memory. `memory_reason` explains the size. `scratch_bytes` limits /tmp and is requested as ephemeral
    storage.
    """

    cpu: str
    memory_bytes: int
    memory_reason: str
    shared_memory_bytes: int
    scratch_bytes: int


REPORT_HOST = HostNeeds(
    "500m", 512 * _MIB, "Python, a client of the store, and one file of at most 16 MiB", 0, 256 * _MIB
)
"""Of the pod that copies the report. It loads no model, and sends small files."""


@dataclass(frozen=True)
class _Sum:
    """Named parts of a size."""

    parts: tuple[tuple[str, int], ...]

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self.parts)

    @property
    def text(self) -> str:
        return " + ".join(f"{name} {binary_size(size)}" for name, size in self.parts if size)


def stage_host(
    spec: FineTuneJobSpec,
    stage: Stage,
    shape: ModelShape | None,
    dataset: DatasetReport | None,
    defaults: ResourceDefaults | None,
    out_of_memory: int,
    *,
    device: Literal["cuda", "cpu"] = "cuda",
    device_bytes: int | None = None,
    optimizers: Collection[Optimizer] = _OPTIMIZERS,
    processes: int = 1,
) -> HostNeeds:
    """Size one stage.

    Sizes of the spec come first, then those of `defaults`. `shape` and `dataset` are None while unknown.
    `out_of_memory` counts the attempts of this stage that ran out of memory: the first one raises the memory by half,
    unless the spec sets it. `device_bytes` is the estimate of TRAIN's GPU memory, used if `device` is cpu. `optimizers`
    are those that TRAIN may take. `processes` are those of one pod of TRAIN, one for each GPU.
    Raises ValueError for a malformed quantity, which the CRD's schema already rejects.
    """
    given = _given(spec, stage)
    processes = processes if stage is Stage.TRAIN else 1
    computed = _memory(spec, stage, shape, dataset, device, device_bytes, optimizers)
    shared = _SHARED_MEMORY * processes if stage is Stage.TRAIN else 0
    chosen = given.memory
    reason = f"set by resources.{stage.slug}.memory"
    if chosen is not None:
        memory = parse_bytes(chosen)
    elif defaults is not None and defaults.memory is not None:
        memory = parse_bytes(defaults.memory)
        reason = f"set by trainer.resources.{stage.slug}.memory of the chart"
    else:
        memory = _round_up(processes * computed.bytes * _MARGIN[0] // _MARGIN[1] + shared)
        reason = (
            f"a quarter more than {computed.text}"
            + (f", for each of {processes} processes" if processes > 1 else "")
            + (f", and {binary_size(shared)} for /dev/shm" if shared else "")
        )
    if chosen is None and out_of_memory > 0:
        memory = _round_up(memory * RETRY_FACTOR[0] // RETRY_FACTOR[1])
        reason += "; raised by half, because an attempt ran out of memory"
    return HostNeeds(
        cpu=given.cpu or (defaults.cpu if defaults is not None else None) or str(processes * _CPU[stage]),
        memory_bytes=memory,
        memory_reason=reason,
        shared_memory_bytes=min(shared, memory // 4),
        scratch_bytes=_SCRATCH[stage],
    )


def may_retry_with_more(spec: FineTuneJobSpec, stage: Stage, out_of_memory: int) -> bool:
    """Return whether a stage that ran out of memory `out_of_memory` times is tried again with half as much again.

    Memory that the user set is not raised, so another attempt would end the same way.
    """
    return out_of_memory <= 1 and _given(spec, stage).memory is None


def out_of_memory_message(spec: FineTuneJobSpec, stage: Stage, needs: HostNeeds) -> str:
    """Say how much memory the stage had, why it is not tried again, and what to set."""
    more = format_bytes(_round_up(needs.memory_bytes * RETRY_FACTOR[0] // RETRY_FACTOR[1]))
    why = (
        "The spec sets this size, so the operator does not raise it"
        if _given(spec, stage).memory is not None
        else "The operator already raised it once"
    )
    return (
        f"{stage.value} needs more than its memory limit of {format_bytes(needs.memory_bytes)}. {why}. "
        f"Create the job again with resources.{stage.slug}.memory of at least {more}."
    )


def workspace_bytes(
    spec: FineTuneJobSpec,
    shape: ModelShape,
    dataset: DatasetReport | None,
    *,
    optimizers: Collection[Optimizer] = _OPTIMIZERS,
) -> tuple[int, str]:
    """Return the largest size that the workspace reaches, and the text that explains it.

    The artifacts are staged at the destination, unless there is a list of destinations: then they are staged here. A job is
    rejected on this sum, so it counts only what is
    certain of the rows: 8 bytes for each supervised token of a known `dataset`. A merge onto the original weights keeps
    all weight files, in at least 16 bits. So does the base as trained, for the adapter's loss on the original base.
    A checkpoint holds what the copy of the training state holds. `optimizers` are those that TRAIN may take.
    """
    adapter = adapter_parameters(shape, spec.training.lora.rank, spec.training.lora.target_modules)
    remote = spec.model.source.persistent_volume_claim is None
    merges_onto_original = "Merged" in spec.output.artifacts and spec.output.merge_onto == "OriginalWeights"
    keeps_original = merges_onto_original or "BaseAsTrained" in spec.output.artifacts
    largest_file = min(2 * shape.parameters, _LARGEST_FILE) if remote and not keeps_original else 0
    total = _Sum(
        (
            ("4-bit model", 0 if spec.model_cache is not None else quantized_bytes(shape)),
            ("largest weight file", largest_file),
            ("original weights", 2 * shape.parameters if keeps_original else 0),
            ("small files", _SMALL_FILES),
            ("rows", 0 if dataset is None else 8 * dataset.supervised_tokens),
            ("adapter checkpoints", _checkpoints(spec) * _copy_bytes(optimizers) * adapter),
            ("artifacts before they are copied", _artifacts(spec, shape, adapter)),
        )
    )
    return total.bytes * 11 // 10, f"{total.text}, plus a tenth for the file system"


def _artifacts(spec: FineTuneJobSpec, shape: ModelShape, adapter: int) -> int:
    """Return the least size of the artifacts, in 16 bits with an adapter in 32; 0 if they are staged at the destination."""
    if spec.output.destinations is None:
        return 0
    models = sum(kind != "Adapter" for kind in spec.output.artifacts)
    return 2 * shape.parameters * models + (4 * adapter if "Adapter" in spec.output.artifacts else 0)


def _checkpoints(spec: FineTuneJobSpec) -> int:
    """Return the most checkpoints at one time. Those of the best step and of the best one before it may stay, too."""
    return _CHECKPOINTS + (2 if spec.training.checkpoint.keep == "Best" else 0)


def _copy_bytes(optimizers: Collection[Optimizer]) -> int:
    return max(_COPY_BYTES[optimizer] for optimizer in optimizers)


def quantized_bytes(shape: ModelShape) -> int:
    """Size of the 4-bit model: 33/64 byte for a quantized weight (NF4, double quantization), 2 bytes for others."""
    return shape.linear_weights * 33 // 64 + 2 * (shape.embedding_weights + shape.other_weights)


def adapter_parameters(shape: ModelShape, rank: int, target_modules: str) -> int:
    """Parameters of a LoRA adapter: rank x (inputs + outputs) for each adapted matrix."""
    return sum(
        count * rank * (linear.inputs + linear.outputs)
        for count, linear in shape.matrices
        if target_modules == "AllLinear" or linear.in_attention
    )


def _given(spec: FineTuneJobSpec, stage: Stage) -> StageResources:
    return {
        Stage.PREPARE: spec.resources.prepare,
        Stage.TRAIN: spec.resources.train,
        Stage.MERGE: spec.resources.merge,
    }[stage]


def _memory(
    spec: FineTuneJobSpec,
    stage: Stage,
    shape: ModelShape | None,
    dataset: DatasetReport | None,
    device: Literal["cuda", "cpu"],
    device_bytes: int | None,
    optimizers: Collection[Optimizer],
) -> _Sum:
    if stage is Stage.PREPARE:
        rows = dataset.rows if dataset is not None else _ASSUMED_ROWS
        name = f"report on {rows:,} rows" + ("" if dataset is not None else " (assumed)")
        return _Sum(
            (
                ("proof in two processes", _PROOF),
                (name, rows * _REPORT_PER_ROW),
                ("tensor slices during quantization", _QUANTIZING),
            )
        )
    if stage is Stage.MERGE:
        return _merging(shape)
    if device == "cpu":
        # The CPU computes in 32 bits, so the 16-bit tensors of the estimate take twice as much.
        model = 16 * _GIB if device_bytes is None else 2 * device_bytes
        return _Sum(
            (
                ("trainer for CPUs", _CPU_PROCESS),
                ("model and activations in 32 bits", model),
                ("copy of the training state", _COPY_BYTES["AdamW"] * _adapter(spec, shape)),
            )
        )
    return _training(spec, shape, optimizers)


def _training(spec: FineTuneJobSpec, shape: ModelShape | None, optimizers: Collection[Optimizer]) -> _Sum:
    largest = 0 if shape is None else 2 * _largest_tensor(shape)
    adapter = _adapter(spec, shape)
    return _Sum(
        (
            ("trainer with CUDA libraries", _CUDA_PROCESS),
            ("tensors being loaded to the GPU", _LOADING_WORKERS * largest),
            ("paged optimizer states", _PAGED_BYTES * adapter if "PagedAdamW8Bit" in optimizers else 0),
            ("copy of the training state", _copy_bytes(optimizers) * adapter),
        )
    )


def _adapter(spec: FineTuneJobSpec, shape: ModelShape | None) -> int:
    """Return the parameters of the job's adapter; 0 while the model's shape is unknown."""
    lora = spec.training.lora
    return 0 if shape is None else adapter_parameters(shape, lora.rank, lora.target_modules)


def _merging(shape: ModelShape | None) -> _Sum:
    """Merging holds one matrix at a time; the check after it reads the merged model layer by layer in float32."""
    if shape is None:
        return _Sum((("trainer for CPUs", _CPU_PROCESS), ("model of unknown size (assumed)", 4 * _GIB)))
    table = 4 * shape.vocabulary * shape.hidden
    layer = 4 * max(
        sum(linear.weights for linear in linears) for linears in (shape.linears, shape.convolution_linears)
    )
    return _Sum(
        (
            ("trainer for CPUs", _CPU_PROCESS),
            ("embedding and output head in float32", 2 * table),
            ("a layer in float32", layer),
            ("logits", 3 * 4 * _LOGITS),
        )
    )


def _largest_tensor(shape: ModelShape) -> int:
    return max(shape.vocabulary * shape.hidden, *(linear.weights for _, linear in shape.matrices))


def _round_up(size: int) -> int:
    """Round up to half a GiB: a size that people recognize and that does not change with every row."""
    step = _GIB // 2
    return -(-size // step) * step
