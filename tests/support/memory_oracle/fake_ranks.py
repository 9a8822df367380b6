"""Runs the trainer's step as one of several ranks on fake tensors, to find what this rank allocates.

torch's process group "fake" stands for the others: its collectives return at once. DDP and FSDP2 are the real ones, with the
trainer's own ways to wrap and to share out a model. FSDP2 frees and allocates storages in place, which `RankAllocations`
follows. The step, its phases and what they leave out are those of `fake_run`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import bitsandbytes
import torch
from bitsandbytes.functional import QuantState
from finetune_operator.sizing.memory.training_plan import TrainingPlan
from finetune_trainer.model.dequantized import DequantizedLinear, dequantize_weights
from finetune_trainer.model.load import cast_model, compute_dtype, quantized_modules
from finetune_trainer.model.output_head import gathered, language_model, output_head
from finetune_trainer.model.packed_parameters import PackedParameter, packed_parameters
from finetune_trainer.model.packed_weight import packed_weights
from finetune_trainer.model.sharding import packed as packed_module
from finetune_trainer.model.sharding.linear import ShardedLinear4bit, stand_in
from finetune_trainer.model.sharding.load import Shell
from finetune_trainer.model.sharding.packed import ShardedPackedWeight, pieces_of
from finetune_trainer.stages.train.adapter import add_adapter
from finetune_trainer.stages.train.ranks import gradients as gradients_module
from finetune_trainer.stages.train.ranks.gradients import SharedGradients
from finetune_trainer.stages.train.ranks.group import ProcessGroup
from finetune_trainer.stages.train.settings import sft_config
from finetune_trainer.trace.allocations import Allocations, rounded
from finetune_trainer.trace.cuda_paths import cuda_paths
from finetune_trainer.trace.fake_model import give_fake_tensors, plain_structure, quantized_structure
from torch import distributed
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp._fully_shard import _fsdp_param
from torch.distributed.tensor import DTensor
from torch.nn.parallel import distributed as data_parallel
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import Trainer

from tests.support.memory_oracle.fake_run import PHASES, FakePeaks, evaluate, every_place, optimize, plan_spec
from tests.support.memory_oracle.shallow import build_config

# torch has no types for it.
_Base: Any = distributed.Reducer  # type: ignore[attr-defined]
_CPU = torch.device("cpu")
_TOKENS_OF_A_PROMPT = 8


class RankAllocations(Allocations):
    """Tracks what a rank holds. A shared parameter stands for all ranks, and counts with this rank's part only."""

    def resized(self, tensor: torch.Tensor, size: int) -> None:
        """Note that a storage has now `size` bytes."""
        key = tensor.untyped_storage()._cdata
        if key in self._live:
            self.current += rounded(size) - self._live[key]
            self._live[key] = rounded(size)
            self._note(0)

    def _add(self, tensor: torch.Tensor) -> None:
        if not isinstance(tensor, DTensor):
            super()._add(tensor)


def run_rank(config: dict[str, Any], plan: TrainingPlan, layers: int | None = None) -> FakePeaks:
    """Run two steps of `plan` as the first of its ranks, with `layers` layers instead of the config's."""
    structure = plain_structure(build_config(config, layers))
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=plan.ranks)
    try:
        # Its ranks are values, which fake tensors do not have.
        mesh = ProcessGroup().mesh("cpu")
        tracked = RankAllocations()
        model = quantized_structure(structure)
        shell = _shell(model, plan) if plan.parallelism == "FullyShard" else None
        with FakeTensorMode(allow_non_fake_inputs=True), cuda_paths(None), tracked, _collectives(tracked):
            tracked.enter("Load")
            adapted = _replica(model, plan) if shell is None else _part(shell, plan, mesh)
            _steps(adapted, plan, tracked)
    finally:
        distributed.destroy_process_group()
    phases = {phase: tracked.peaks[phase] for phase in PHASES}
    return FakePeaks(phases, max(phases.values()))


@contextmanager
def _collectives(tracked: RankAllocations) -> Iterator[None]:
    """Follow FSDP2's storages, and leave out what reads values: DDP's comparison of ranks, and its search for experts.

    With that search, DDP keeps its first buckets, so they are kept here, too.
    """
    free, allocate = _fsdp_param.free_storage, _fsdp_param.alloc_storage

    def freed(tensor: torch.Tensor) -> None:
        free(tensor)
        tracked.resized(tensor, 0)

    def allocated(tensor: torch.Tensor) -> None:
        allocate(tensor)
        tracked.resized(tensor, tensor.numel() * tensor.itemsize)

    own = data_parallel.DistributedDataParallel

    def wrapped(module: Any, **settings: Any) -> Any:
        return own(module, **{**settings, "find_unused_parameters": False})

    wrapped._set_params_and_buffers_to_ignore_for_model = own._set_params_and_buffers_to_ignore_for_model  # type: ignore[attr-defined]
    with (
        patch.object(_fsdp_param, "free_storage", freed),
        patch.object(_fsdp_param, "alloc_storage", allocated),
        patch.object(data_parallel, "_verify_param_shape_across_processes", lambda *_given: None),
        patch.object(data_parallel, "_sync_module_states", lambda *_given, **_named: None),
        patch.object(gradients_module, "DistributedDataParallel", wrapped),
        patch.object(gradients_module, "_add", _added),
        patch.object(distributed, "Reducer", _Reducer),
    ):
        yield


class _Reducer(_Base):  # type: ignore[misc]  # see above
    def _rebuild_buckets(self) -> bool:
        return False


def _added(_watch, bucket):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 -- DDP compares annotations with types, and here they are text
    """Stand for the sum over ranks, whose result a fake group never gives."""
    done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


def _replica(model: Any, plan: TrainingPlan) -> Any:
    give_fake_tensors(model)
    cast_model(model, compute_dtype("cuda"))
    names = list(quantized_modules(model))
    if plan.weights == "Dequantized":
        dequantize_weights(model)
    return add_adapter(model, plan_spec(plan).training.lora, names)


def _shell(model: Any, plan: TrainingPlan) -> Shell:
    """Return what `sharding.load.load_shell` returns for a checkpoint, but for the tensors that it reads."""
    shell = Shell(model, _CPU)
    dtype = compute_dtype("cuda")
    for name in quantized_modules(model):
        layer = model.get_submodule(name)
        with (
            patch.object(
                bitsandbytes.functional.QuantState, "from_dict", lambda layer=layer, **_: _constants(layer)
            ),
            patch.object(bitsandbytes.nn, "Params4bit", _plain_parameter),
        ):
            sharded: Any = ShardedLinear4bit(layer, {"code": torch.empty(0)}, dtype)
        if plan.weights == "Dequantized":
            sharded = DequantizedLinear(sharded, stand_in((layer.out_features, layer.in_features), dtype))
            shell.sources[sharded, "weight"] = _reader((layer.in_features,), dtype)
        else:
            shell.sources[sharded, "weight"] = _reader((1,), torch.uint8)
            shell.sources[sharded, "absmax"] = _reader((1,), torch.uint8)
        model.set_submodule(name, sharded)
    for parameter in packed_parameters(model):
        _add_packed(shell, parameter)
    model.tie_weights()
    return shell


def _add_packed(shell: Shell, parameter: PackedParameter) -> None:
    path, _, name = parameter.name.rpartition(".")
    owner = shell.model.get_submodule(path)
    del owner._parameters[name]
    blocks = {piece.part.tensor: piece.blocks for piece in pieces_of(parameter)}
    with patch.object(packed_module, "_state", _nested_constants):
        weight = ShardedPackedWeight(parameter, blocks)  # type: ignore[arg-type]
    setattr(owner, name, weight)
    shell.sources[weight, "packed"] = _reader((1,), torch.uint8)
    shell.sources[weight, "absmax"] = _reader((1,), torch.uint8)


def _part(shell: Shell, plan: TrainingPlan, mesh: DeviceMesh) -> Any:
    """Return the adapted model with this rank's part of the weights."""
    model, dtype = shell.model, compute_dtype("cuda")
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    for module in model.modules():
        states = [getattr(module, "quant_state", None) or getattr(module, "constants", None)]
        if isinstance(module, ShardedPackedWeight):
            known = {id(place.constants): place.constants for matrix in module.places for place in matrix}
            states = list(known.values())
        for state in states:
            for one in (state, getattr(state, "state2", None)):
                _fake_attributes(one)
        _fake_attributes(module)
        for name, value in module._parameters.items():
            if value is None or not value.is_meta or (tied and module is head):
                continue
            if value.ndim < 2:
                module._parameters[name] = torch.nn.Parameter(
                    torch.empty(value.shape, dtype=dtype), requires_grad=False
                )
            else:
                shell.sources[module, name] = _reader(tuple(value.shape[1:]), dtype)
        for name, value in module._buffers.items():
            if value is not None and value.is_meta:
                module._buffers[name] = torch.empty(value.shape, dtype=value.dtype)
    model.is_loaded_in_4bit = True
    model.requires_grad_(requires_grad=False)
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, ShardedLinear4bit | DequantizedLinear)
    ]
    names += [part.module for weight in packed_weights(model).values() for part in weight.parameter.parts]
    adapted = add_adapter(model, plan_spec(plan).training.lora, names)
    shell.fill(adapted, mesh)
    return adapted


def _constants(layer: Any) -> Any:
    """Return the constants of a layer with the sizes that a checkpoint gives them, without those of its blocks."""
    found = _nested_constants(-(-layer.in_features * layer.out_features // 64))
    found.shape = torch.Size((layer.out_features, layer.in_features))
    return found


def _nested_constants(blocks: int) -> Any:
    """Return the constants of a weight with so many blocks, without those of the blocks."""
    made: Any = QuantState
    second = made(
        absmax=torch.empty(-(-blocks // 256)), blocksize=256, code=torch.empty(256), dtype=torch.float32
    )
    return made(
        absmax=torch.empty(0, dtype=torch.uint8),
        dtype=compute_dtype("cuda"),
        blocksize=64,
        code=torch.empty(16),
        quant_type="nf4",
        offset=torch.empty(()),
        state2=second,
    )


def _plain_parameter(data: torch.Tensor, *, requires_grad: bool, **attributes: Any) -> Any:
    """Return a parameter with the attributes of a Params4bit, which cannot hold a fake tensor."""
    made: Any = torch.nn.Parameter(data, requires_grad=requires_grad)
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def _reader(rest: tuple[int, ...], dtype: torch.dtype) -> Any:
    return lambda first, last: torch.empty((last - first, *rest), dtype=dtype)


def _fake_attributes(holder: Any) -> None:
    """Replace tensors that are plain attributes by fake ones. They were made before anything counted."""
    for name, value in vars(holder).items() if holder is not None else ():
        if isinstance(value, torch.Tensor) and not isinstance(value, torch.nn.Parameter):
            setattr(holder, name, torch.empty(value.shape, dtype=value.dtype))


def _steps(model: Any, plan: TrainingPlan, tracked: RankAllocations) -> None:
    run = plan_spec(plan)
    settings = sft_config(run, Path("/output"), 2)
    if settings.gradient_checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(settings.gradient_checkpointing_kwargs)
    kind, arguments = Trainer.get_optimizer_cls_and_kwargs(settings, model)
    with unset_fake_temporarily():
        # bitsandbytes computes its code tables, which reads values.
        optimizer = kind([value for value in model.parameters() if value.requires_grad], **arguments)
    one = every_place(plan, packed=False)
    model.train()
    gradients = SharedGradients(model, ProcessGroup(), seed=0)
    # States, and the parameters that FSDP2 gathers into, exist after the first step.
    for step in ("First", ""):
        passes = min(2, plan.gradient_accumulation)
        for number in range(passes):
            with gradients.of_pass(last=number == passes - 1):
                tracked.enter(step or "Loss")
                loss = gradients.parts(model, one)[0] / plan.tokens
                tracked.enter(step or "Recompute")
                loss.backward()
                del loss
        tracked.enter(step or "Optimizer")
        optimize(model, optimizer, settings.max_grad_norm)
    gradients.close()
    evaluate(model, plan, tracked)
    if plan.parallelism == "FullyShard":
        # A token of an answer, as `evaluation.generation` computes it.
        with torch.no_grad(), gathered(output_head(model).projection):
            language_model(model)(input_ids=torch.zeros((1, _TOKENS_OF_A_PROMPT), dtype=torch.long))
