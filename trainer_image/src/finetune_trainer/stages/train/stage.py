"""TRAIN: evaluate the base, train the adapter, evaluate again, and leave the input of MERGE."""

from __future__ import annotations

import logging
import os
import shutil
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import AutoTokenizer, TrainerState, set_seed

from finetune_trainer.contract.naming import base_model_name
from finetune_trainer.contract.train_result import AttentionResult, TrainResult
from finetune_trainer.cpu import available_cpus
from finetune_trainer.errors import StageError
from finetune_trainer.model.attention import allow_kernels, attention_of
from finetune_trainer.model.dequantized import dequantize_weights
from finetune_trainer.model.fused.device import device_kernels
from finetune_trainer.model.fused.prepare import NO_KERNELS, RunKernels, prepare_kernels
from finetune_trainer.model.layout import read_base_layout
from finetune_trainer.model.load import check_quantized, load_quantized
from finetune_trainer.model.packing_canary import packing_obstacle
from finetune_trainer.report.curve import training_report, write_training_report
from finetune_trainer.stages.train import memory
from finetune_trainer.stages.train.adapter import add_adapter, save_adapter
from finetune_trainer.stages.train.batching import (
    Batching,
    BatchingCallback,
    batching_result,
    begun_kind,
    choose,
)
from finetune_trainer.stages.train.checkpoint_files import STATE
from finetune_trainer.stages.train.checkpoints import newest_checkpoint, saved_steps
from finetune_trainer.stages.train.compile_cache import (
    FOLDER,
    VARIABLE,
    archive_name,
    compile_cache,
    writable_folder,
)
from finetune_trainer.stages.train.dataset import open_table, training_dataset
from finetune_trainer.stages.train.early_stopping import history_of, selection_rule, split_rows
from finetune_trainer.stages.train.evaluate import answers, base_losses, judged, with_answers
from finetune_trainer.stages.train.fit import fit, fitting
from finetune_trainer.stages.train.kernels import KernelCallback, begun_kernels, kernels_result
from finetune_trainer.stages.train.ladder import Ladder, this_device
from finetune_trainer.stages.train.loop import AdapterTrainer
from finetune_trainer.stages.train.loss import Objective
from finetune_trainer.stages.train.optimizers import begun_optimizer
from finetune_trainer.stages.train.origin import origin_of
from finetune_trainer.stages.train.out_of_memory import gpu_out_of_memory, is_device_out_of_memory
from finetune_trainer.stages.train.probe import ACTIVITY as PROBING
from finetune_trainer.stages.train.probe import needs_probe, probe
from finetune_trainer.stages.train.progress_callback import ProgressCallback
from finetune_trainer.stages.train.ranks.group import ALONE
from finetune_trainer.stages.train.ranks.sharded import load_sharded
from finetune_trainer.stages.train.resume import is_finished, run_steps
from finetune_trainer.stages.train.rungs import rung_of, rung_result, smaller_batches
from finetune_trainer.stages.train.selection import Selection
from finetune_trainer.stages.train.settings import planned_steps, sft_config
from finetune_trainer.stages.train.stop_request import StopRequest, interrupted
from finetune_trainer.stages.train.versions import VersionCallback, compiler_versions, note_versions
from finetune_trainer.termination import Terminated
from finetune_trainer.workspace.digests import digest_of_files, folder_digests
from finetune_trainer.workspace.layout import WorkspaceLayout, read_marker, write_marker
from finetune_trainer.workspace.trained_base import record_trained_base

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from finetune_trainer.contract.run_spec import RunSpec
    from finetune_trainer.data.masking.example import Example
    from finetune_trainer.stages.train.origin import Origin
    from finetune_trainer.stages.train.ranks.group import Ranks
    from finetune_trainer.telemetry.reporter import Reporter

_log = logging.getLogger(__name__)
_LAST_LOSSES = 10


def train(run: RunSpec, progress: Reporter) -> TrainResult:
    """Train the run's adapter in this process and return the `train` member of the result.

    Raises what `train_rank` raises.
    """
    result = train_rank(run, progress, ALONE)
    if result is None:
        raise RuntimeError("a process without other ranks must have the result")
    return result


def train_rank(run: RunSpec, progress: Reporter, ranks: Ranks) -> TrainResult | None:
    """Train the run's adapter as one of its ranks; return the result on the first one, and None on the others.

    Training continues from the newest complete checkpoint, and a GPU that is out of memory takes the next rung of the
    ladder. Raises StageError: GpuNotVisible, GpuOutOfMemory, QuantizationMismatch, InvalidDataset, NonFiniteLoss,
    AdapterUntrained, or Interrupted after SIGTERM, as soon as a checkpoint is saved.
    """
    workspace = WorkspaceLayout(run.workspace.path)
    done = ranks.from_first(lambda: read_marker(workspace, "train", run.spec_hash))
    if (finished := TrainResult.read(done)) is not None:
        return finished if ranks.is_first else None
    # The log must not hold progress bars: the reporter shows the progress.
    transformers.utils.logging.disable_progress_bar()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(available_cpus())
    stop = StopRequest()

    def attempt(of_rung: RunSpec, ladder: Ladder, is_last: bool) -> TrainResult | None:  # noqa: FBT001 -- `fit` names it
        return _train(of_rung, workspace, progress, ladder, stop, ranks, is_last=is_last)

    with stop.listening():
        try:
            device = this_device(run.device)
            with compile_cache(*_archive(run, workspace, ranks)):
                result = fit(run, workspace, device, attempt, lambda: begun_optimizer(run, workspace), ranks)
                # The work is done, so a request to stop must not hide the result.
                stop.hold()
        except Terminated as signal_name:
            raise interrupted(str(signal_name), saved_steps(workspace.checkpoints)) from signal_name
        except Exception as error:
            if stop.signal is not None and not isinstance(error, StageError):
                # A library turned the request into an error of its own, for example in a callback of C++.
                raise interrupted(stop.signal, saved_steps(workspace.checkpoints)) from error
            # Of an activity that needs the same memory on every rung, such as loading the model.
            if is_device_out_of_memory(error):
                raise gpu_out_of_memory(run, error) from error
            raise
        if result is None:
            return None
        write_marker(workspace, "train", run.spec_hash, result.document())
        # The adapter is saved, so checkpoints only take space.
        shutil.rmtree(workspace.checkpoints, ignore_errors=True)
        Ladder.forget(workspace)
    return result


def _train(
    run: RunSpec,
    workspace: WorkspaceLayout,
    progress: Reporter,
    ladder: Ladder,
    stop: StopRequest,
    ranks: Ranks,
    *,
    is_last: bool,
) -> TrainResult | None:
    """Train on one rung, that of `run`. Raises DoesNotFitError where a more frugal rung may help."""
    rung = rung_of(run)
    origin = origin_of(run, workspace)
    table = open_table(workspace.training_table)
    validation = open_table(workspace.validation_table)
    rule = selection_rule(run.training)
    judging, selecting = split_rows(len(validation), run.evaluation.maximum_rows, rule)
    held_out = validation.first(judging + selecting)
    examples = held_out[:judging]
    steps = planned_steps(len(table), run.training)
    if ranks.is_first:
        record_trained_base(workspace, run.spec_hash)
    progress.update("LoadingModel", 0, 1)
    watch = ProgressCallback(progress, stop)
    with _loading(run):
        loaded = _load(run, workspace, ranks)
    progress.update("LoadingModel", 1, 1)
    after_loading = memory.read()
    checkpoint = ranks.from_first(lambda: newest_checkpoint(workspace.checkpoints, origin))
    with fitting("LoadingModel"):
        batching = ranks.gather(_batching(run, loaded.adapted, table.longest(), checkpoint))[0]
        kernels = _kernels(run, loaded.adapted, checkpoint)
    probed = ladder.probe_of(rung)
    finished = checkpoint is not None and is_finished(checkpoint, steps, rule)
    if needs_probe(resumes=checkpoint is not None, finished=finished, passed=probed is not None):
        with fitting(PROBING):
            probed = probe(
                run,
                workspace,
                loaded.adapted,
                loaded.tokenizer,
                table,
                batching,
                progress,
                kernels.layers,
                ranks,
            )
        if ranks.is_first:
            ladder.with_probe(rung, probed).save(workspace, run.spec_hash)
    trainer = _build_trainer(
        run, workspace, loaded, training_dataset(table), batching, steps, watch, origin, kernels, ranks
    )
    budgets = _evaluation_budgets(run.training.micro_batch_size * table.longest(), held_out, is_last=is_last)
    selection = None
    if rule is not None:
        selection = Selection(rule, trainer.adapted, held_out[judging:], budgets, stop, ranks)
        selection.join(trainer, progress)
    with fitting("EvaluatingBase"):
        base = base_losses(run, workspace, trainer.adapted, examples, budgets, progress, ranks)
    with fitting("Training", lambda: trainer.state.global_step + 1):
        run_steps(trainer, checkpoint, steps, selection)
    last = trainer.state.global_step
    published = last if selection is None else selection.load_published(trainer, origin)
    with fitting("EvaluatingTuned"):
        comparison = judged(run, workspace, trainer.adapted, examples, base, budgets, progress, ranks)
    if comparison is None:
        return None
    _save(run, workspace, trainer)
    # Answers need other memory than training, which the estimate is about.
    peaks = memory.measured(after_loading, memory.read())
    found = answers(run, workspace, trainer.adapted, examples, progress, ranks)
    comparison = with_answers(run, workspace, comparison, found)
    software = note_versions(trainer.state)
    return TrainResult(
        device=_device_name(run.device),
        steps=trainer.state.global_step,
        training_loss=_last_loss(trainer),
        tokens_per_second=watch.tokens_per_second,
        adapter_digest=digest_of_files(folder_digests(workspace.adapter)),
        memory=peaks,
        evaluation=comparison,
        rung=rung_result(rung),
        batching=batching_result(batching, trainer.state.log_history),
        attention=AttentionResult(backend=trainer.attention.backend, reason=trainer.attention.reason),
        kernels=kernels_result(kernels.choice),
        **({"failed_rungs": ladder.failed} if ladder.failed else {}),
        **({} if probed is None else {"probe": probed}),
        versions=dict(software.versions),
        **({"version_changes": software.changes} if software.changes else {}),
        **({} if selection is None else {"selection": selection.result(trainer.state, steps, published)}),
    )


@dataclass(frozen=True)
class _Loaded:
    """The base model with its new adapter, and its tokenizer."""

    adapted: Any
    tokenizer: Any


def _evaluation_budgets(tokens: int, held_out: Sequence[Example], *, is_last: bool) -> tuple[int, ...]:
    """Return the tokens of an evaluation's batches to try. Only the last rung has no other way to need less."""
    longest = max(len(example.input_ids) for example in held_out)
    return smaller_batches(tokens, longest) if is_last else (tokens,)


def _archive(run: RunSpec, workspace: WorkspaceLayout, ranks: Ranks = ALONE) -> tuple[Path, str | None]:
    """Return the folder and the name of the archive of compiled kernels. A CPU compiles none, and one rank keeps them."""
    # A GPU that is not visible is an error of its own, when the model is loaded.
    if run.device != "cuda" or not torch.cuda.is_available() or not ranks.is_first:
        return workspace.root, None
    name = archive_name(torch.cuda.get_device_capability(), compiler_versions())
    return writable_folder(os.environ.get(VARIABLE), workspace.root / FOLDER), name


def _loading(run: RunSpec) -> AbstractContextManager[None]:
    """Take the next rung if dequantized weights are too large. Packed ones are the same on every other rung."""
    return fitting("LoadingModel") if run.training.weights == "Dequantized" else nullcontext()


def _load(run: RunSpec, workspace: WorkspaceLayout, ranks: Ranks = ALONE) -> _Loaded:
    layout = read_base_layout(workspace)
    if ranks.size > 1 and run.training.parallelism == "FullyShard":
        adapted = load_sharded(run, workspace, layout, ranks)
        return _Loaded(adapted, _tokenizer(workspace.base, adapted.get_input_embeddings().weight.shape[0]))
    model = load_quantized(workspace.quantized_model, run.device)
    check_quantized(model, layout)
    # It is the same for packed and padded rows.
    allow_kernels(attention_of(model.config, run.device, packed=False))
    if run.training.weights == "Dequantized":
        dequantize_weights(model)
        # The packed matrices leave gaps between the others, which no large tensor fits.
        memory.release()
    # This comes before the adapter: its initial values are random.
    set_seed(run.training.seed)
    adapted = add_adapter(model, run.training.lora, layout.adaptable)
    return _Loaded(adapted, _tokenizer(workspace.base, model.get_input_embeddings().weight.shape[0]))


def _build_trainer(
    run: RunSpec,
    workspace: WorkspaceLayout,
    loaded: _Loaded,
    dataset: Any,
    batching: Batching,
    steps: int,
    watch: ProgressCallback,
    origin: Origin | None = None,
    kernels: RunKernels = NO_KERNELS,
    ranks: Ranks = ALONE,
) -> AdapterTrainer:
    trainer = AdapterTrainer(
        model=loaded.adapted,
        args=sft_config(run, workspace.checkpoints, steps),
        train_dataset=dataset,
        processing_class=loaded.tokenizer,
        callbacks=[watch, VersionCallback(), BatchingCallback(batching), KernelCallback(kernels.choice)],
        checkpoints=workspace.checkpoints,
        batching=batching,
        kernels=kernels.layers,
        objective=Objective.of(loaded.adapted, run.training.router_aux_loss_coefficient),
        origin=origin,
        stop=watch.stop,
        clock=watch.clock,
        ranks=ranks,
    )
    watch.trainer = trainer
    return trainer


def _batching(run: RunSpec, model: Any, longest: int, checkpoint: tuple[int, Path] | None) -> Batching:
    """Choose the passes of the run; the canary runs only if they depend on it."""
    begun = (
        None if checkpoint is None else begun_kind(TrainerState.load_from_json(str(checkpoint[1] / STATE)))
    )
    found = choose(run.training, longest, begun, None)
    if found.kind == "Packed":
        found = choose(run.training, longest, begun, packing_obstacle(model, longest))
    _log.info(
        "passes: %s of at most %d tokens; %s", found.kind, found.budget, found.reason or "nothing is padded"
    )
    return found


def _kernels(run: RunSpec, model: Any, checkpoint: tuple[int, Path] | None) -> RunKernels:
    """Choose and try the kernels of the run, and put them into its model."""
    begun = (
        None if checkpoint is None else begun_kernels(TrainerState.load_from_json(str(checkpoint[1] / STATE)))
    )
    return prepare_kernels(model, run.training.kernels, device_kernels(run.device), begun)


def _tokenizer(folder: Path, rows: int) -> Any:
    """Load the tokenizer, which pads batches. Nothing attends to padding, but its id needs one of the embedding's rows."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    if padding is None or padding >= rows:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def _save(run: RunSpec, workspace: WorkspaceLayout, trainer: AdapterTrainer) -> None:
    """Save the adapter, and the losses of the training for the report, because its checkpoints are removed."""
    save_adapter(trainer.adapted, workspace.adapter, base_model_name(run))
    history = trainer.state.log_history
    held_out = [(measurement.step, measurement.loss) for measurement in history_of(history)]
    try:
        write_training_report(workspace.report, training_report(run.job.name, history, held_out))
    except OSError as error:
        _log.warning("the workspace cannot keep the losses of the training: %s", error)


def _last_loss(trainer: AdapterTrainer) -> float:
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    last = losses[-_LAST_LOSSES:]
    return sum(last) / len(last)


def _device_name(device: str) -> str:
    return str(torch.cuda.get_device_name())[:64] if device == "cuda" else "cpu"
