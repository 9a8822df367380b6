"""SFTTrainer with the loss of proven labels, verified checkpoints and exact resume."""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback
from transformers.trainer_callback import ExportableState
from trl.trainer.sft_trainer import SFTTrainer

from finetune_trainer.errors import StageError
from finetune_trainer.model.attention import attention_of
from finetune_trainer.model.fused.layers import FusedLayers
from finetune_trainer.model.output_head import is_sharded
from finetune_trainer.model.packed_attention import using_attention
from finetune_trainer.stages.train.adapter import checkpoint_tensors, load_adapter_weights
from finetune_trainer.stages.train.checkpoint_writer import CheckpointWriter, WaitingTime
from finetune_trainer.stages.train.checkpoints import step_of
from finetune_trainer.stages.train.early_stopping import history_of
from finetune_trainer.stages.train.loss import Objective
from finetune_trainer.stages.train.master_weights import kept_values
from finetune_trainer.stages.train.passes import StepCollator
from finetune_trainer.stages.train.prefetch import Prefetcher
from finetune_trainer.stages.train.random_states import StepEnd, random_states
from finetune_trainer.stages.train.ranks.gradients import Gradients, SharedGradients
from finetune_trainer.stages.train.ranks.group import ALONE
from finetune_trainer.stages.train.snapshot import HostMemory, Snapshot
from finetune_trainer.stages.train.step_clock import StepClock
from finetune_trainer.stages.train.stop_request import StopRequest
from finetune_trainer.stages.train.unread import FinishedStep, HostCopy, UnreadSteps
from finetune_trainer.termination import Terminated

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from finetune_trainer.stages.train.batching import Batching
    from finetune_trainer.stages.train.early_stopping import SelectionRule
    from finetune_trainer.stages.train.origin import Origin
    from finetune_trainer.stages.train.passes import Pass, Step
    from finetune_trainer.stages.train.ranks.group import Ranks

_log = logging.getLogger(__name__)


class AdapterTrainer(SFTTrainer):
    """Trains the adapter of a quantized model on proven labels.

    A batch of the loader has the rows of a whole step, and `batching` splits it into passes. `checkpoints` is the folder
    of the saved states, and `origin` describes the run in them. Without `origin`, nothing is saved. `tokens` counts this
    process's training tokens without padding. A checkpoint is copied to host memory, and a thread writes it while the
    next steps run. `objective` is the loss of the answers alone if it is not given. `stop` is obeyed between two passes: the
    started step is dropped, and the state after the last finished one is saved. So a resumed run repeats no step, and ends
    with the same adapter.

    Several `ranks` share the rows of each step. They stop before the same step, and only the first one saves.
    """

    def __init__(
        self,
        *arguments: Any,
        checkpoints: Path,
        batching: Batching,
        kernels: FusedLayers | None = None,
        objective: Objective | None = None,
        origin: Origin | None = None,
        stop: StopRequest | None = None,
        clock: StepClock | None = None,
        ranks: Ranks = ALONE,
        **settings: Any,
    ) -> None:
        # TRL rounds the adapter of every quantized model to bf16.
        collator = StepCollator(batching, ranks, even=is_sharded(settings["model"]))
        with kept_values(settings["model"]):
            super().__init__(*arguments, **{**settings, "data_collator": collator})
        self._prefetcher = Prefetcher(self.train_dataset, collator, pin=self.args.dataloader_pin_memory)
        begin_step: Any = self._prefetcher
        self.data_collator = begin_step
        self.checkpoints = checkpoints
        self.attention = attention_of(
            self.adapted.config, self.args.device.type, packed=batching.kind == "Packed"
        )
        """The attention of all passes, which the result reports."""
        self.tokens = 0
        self.selection: SelectionRule | None = None
        """The rule by which checkpoints of earlier steps must stay."""
        self._kernels = kernels or FusedLayers()
        self._objective = objective or Objective()
        self._balance: torch.Tensor | None = None
        self._balances: list[torch.Tensor] = []
        self._saves = origin is not None and ranks.is_first
        self._ranks = ranks
        self.gradients = Gradients(self._objective.parts)
        """The gradients of the steps; those of the last training stay."""
        self._stop = stop or StopRequest()
        self._clock = clock or StepClock(time.monotonic)
        self._writer = CheckpointWriter(checkpoints, {} if origin is None else origin.document)
        self._waiting = WaitingTime(time.monotonic())
        self._memory = HostMemory()
        self._finished: StepEnd | None = None
        self._step: Step | None = None
        self._unread = UnreadSteps(self._report)
        # A walk over all modules takes as long as a part of a step on a fast GPU.
        self._trained = [value for value in self.adapted.parameters() if value.requires_grad]
        self.remove_callback(PrinterCallback)
        # The tokenizer was needed only for the padding token. If it stayed, it would be written into every
        # checkpoint, and transformers would change the model's special tokens to match it.
        self.processing_class = None

    def compute_loss(  # type: ignore[override]  # a pass instead of a dict of tensors
        self,
        model: Any,
        inputs: Pass,
        return_outputs: bool = False,  # noqa: FBT001, FBT002 -- the base class's signature
        num_items_in_batch: int | None = None,
    ) -> Any:
        """Return the sum of -ln p over a pass's learned tokens, divided by their number in the whole step.

        So passes of any size give the same sum. The value equals TRL's on every device. TRL's entropy and accuracy are
        not computed. The load-balancing loss of the pass is kept apart.
        """
        if return_outputs:
            raise NotImplementedError("logits of a whole batch are never held; measure with `scoring`")
        total, self._balance = self.gradients.parts(model, inputs)
        return total / max(1, len(inputs.targets) if num_items_in_batch is None else num_items_in_batch)

    @property
    def adapted(self) -> Any:
        """The model with its adapter."""
        return self.model

    @property
    def checkpoint_time(self) -> datetime | None:
        """Time at which this process wrote its newest checkpoint; None before the first one."""
        return self._writer.written

    def create_model_card(self, *_arguments: Any, **_settings: Any) -> None:
        """Write no card: MERGE writes the cards of published artifacts."""

    def train(self, resume_from_checkpoint: Any = None, *arguments: Any, **settings: Any) -> Any:
        """Train as the base class does; at the end, the state after the last step is on the disk.

        Raises Terminated after a request to stop. Then, and after an error that leaves the state of the last finished
        step whole, that state is saved, too. Raises StageError: NonFiniteLoss, or WorkspaceFull.
        """
        self._finished = None
        self._unread.forget()
        self._writer.durable = step_of(resume_from_checkpoint)
        # A new adapter is in training mode while the layers of its model are not.
        self.adapted.train()
        with self._stop.held(), self._zeroing_only_trained():
            if self._ranks.size > 1:
                self.gradients = SharedGradients(
                    self.adapted, self._ranks, self.args.seed, self._objective.parts
                )
            try:
                output = super().train(resume_from_checkpoint, *arguments, **settings)
            except StageError:
                self._save_after_error(newer=False)
                raise
            except (Terminated, Exception) as error:
                failure = self._failure_of_unread()
                self._save_after_error(newer=failure is None)
                if isinstance(error, Terminated):
                    # The first rank that ends ends all, and the state must be on the disk by then.
                    self._ranks.meet()
                if failure is not None:
                    raise failure from error
                raise
            finally:
                self._prefetcher.close()
                self.gradients.close()
            self._save_finished()
            return output

    def get_train_dataloader(self) -> Any:
        """Return a loader that draws places of rows as the base class draws rows; its batches are steps in the making."""
        rows: Any = self.train_dataset
        settings: dict[str, Any] = {
            "dataset": range(len(rows)),
            "description": "Training",
            "batch_size": self._train_batch_size,
            "sampler_fn": self._get_train_sampler,
            "is_training": True,
        }
        return self._get_dataloader(**settings)

    def before_update(self) -> None:
        """Let the optimizer change the state.

        A kill must not cost more steps than are between two checkpoints. So the step after a checkpoint waits for its
        write, if that takes longer than the step's own passes.
        """
        if self._writer.busy and self.state.global_step - (self._writer.durable or 0) >= self.args.save_steps:
            started = time.monotonic()
            with self._clock.pause():
                self._writer.wait(self._waiting.allowed(started))
            self._waiting.add(time.monotonic() - started)
        self._finished = None

    def training_step(  # type: ignore[override]  # a step instead of a dict of tensors
        self,
        model: Any,
        inputs: Step,
        num_items_in_batch: Any = None,  # noqa: ARG002 -- the step counts its tokens itself
    ) -> torch.Tensor:
        """Run the passes of a step, unless a stop is requested. Raises Terminated, or an error of the last save.

        Nothing here waits for the device: the passes are queued, and the loss is read after those of the next step.
        """
        # A walk over all modules, so only after an evaluation.
        if not model.training:
            model.train()
        self._step = inputs
        number = self.state.global_step + 1
        self.gradients.begin(inputs, number, self._stop.signal)
        device = self.args.device
        loss, self._balances = torch.zeros((), device=device), []
        with (
            using_attention(model, self.attention.implementation),
            self._kernels.active(),
            self.gradients.of_step(number),
        ):
            for place, one in enumerate(inputs.passes, start=1):
                self._check_stop()
                if not self._writer.busy:
                    self._writer.wait()
                moved = one.moved(lambda value: value.to(device, non_blocking=True))
                with self.gradients.of_pass(last=place == len(inputs.passes)):
                    part = self.compute_loss(model, moved, num_items_in_batch=inputs.learned)
                    balance, self._balance = self._balance, None
                    if balance is not None:
                        balance = balance * (one.tokens / inputs.tokens)
                        self._balances.append(balance.detach())
                    self._objective.total(part, balance).backward()
                loss += part.detach()
                self.tokens += one.tokens
        if self._balances:
            self._balances = [self.gradients.total(torch.stack(self._balances).sum())]
        return self.gradients.total(loss)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], None]:  # noqa: ARG002 -- the base class's signature
        """Return the next step; it counts its learned tokens itself. Raises Terminated, or the error of its making."""
        begun = islice(epoch_iterator, num_batches)
        return [self._prefetcher.wait(step, self._check_stop) for step in begun], None

    def floating_point_ops(self, inputs: Any) -> int:  # noqa: ARG002 -- the base class's signature
        """Return 0: the base class counts all parameters in each step, and nothing reads the figure."""
        return 0

    @contextmanager
    def _zeroing_only_trained(self) -> Iterator[None]:
        """Let `zero_grad` of the model, which the base class calls in each step, take the trained values alone.

        torch's own walks over all modules to find them.
        """

        def zero_grad() -> None:
            for value in self._trained:
                value.grad = None

        self.adapted.zero_grad = zero_grad
        try:
            yield
        finally:
            del self.adapted.zero_grad

    def _clip_grad_norm(self, model: Any) -> torch.Tensor:  # noqa: ARG002 -- the base class's signature
        return torch.nn.utils.clip_grad_norm_(self._trained, self.args.max_grad_norm)

    def _get_grad_norm(self, model: Any, grad_norm: torch.Tensor | None = None) -> torch.Tensor:  # noqa: ARG002 -- the base class's signature
        if grad_norm is not None:
            return grad_norm
        return torch.nn.utils.get_total_norm(
            [value.grad for value in self._trained if value.grad is not None]
        )

    def _maybe_log_save_evaluate(
        self, tr_loss: torch.Tensor, grad_norm: Any, *arguments: Any, **settings: Any
    ) -> None:
        """Mark the step as finished once the one before it is reported, and this one if it is measured or saved.

        Loss and gradient norm go to the host together, and nothing waits for them here before the next step is queued.
        """
        if self.control.should_log and self._step is not None:
            # The base class would read both at once, and the device would be idle until the next step is queued.
            self.control.should_log = False
            found = (tr_loss, grad_norm, *([sum(self._balances)] if self._balances else ()))
            numbers = HostCopy(torch.stack([value.to(tr_loss.dtype) for value in found]))
            tr_loss.zero_()
            self._unread.add(
                FinishedStep(
                    step=self.state.global_step,
                    epoch=float(self.state.epoch or 0),
                    learning_rate=float(settings["learning_rate"]),
                    examples=self._step.examples,
                    tokens=self._step.tokens,
                    computed=self._step.computed,
                    numbers=numbers,
                )
            )
        if self.control.should_evaluate or self.control.should_training_stop:
            self._unread.report_all()
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *arguments, **settings)
        self._finished = StepEnd(self.state.global_step, random_states())
        self._check_stop()

    def _check_stop(self) -> None:
        """Raise Terminated if a stop is requested. Several ranks stop together, before the next step."""
        if self._ranks.size == 1:
            self._stop.check()

    def _report(self, entry: dict[str, Any]) -> None:
        """Add a finished step to the history and tell the callbacks. Raises StageError(NonFiniteLoss)."""
        self._total_loss_scalar += entry["loss"]
        self.state.log_history.append(entry)
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, entry)

    def _evaluate(self, *_arguments: Any, **_settings: Any) -> dict[str, float]:
        """Let the callbacks measure: the base class would compute the loss in its own way."""
        with self._clock.pause():
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics={})
        return {}

    def _save_checkpoint(self, model: Any, trial: Any) -> None:  # noqa: ARG002 -- the base class's signature
        if self._saves:
            with self._clock.pause():
                self._submit(StepEnd(self.state.global_step, random_states()))

    def _save_finished(self) -> None:
        """Save the last finished step, if that has not happened, and wait until it is on the disk."""
        self._writer.wait()
        if self._saves and self._finished is not None and self._finished.step != self._writer.durable:
            self._submit(self._finished)
            self._writer.wait()

    def _failure_of_unread(self) -> StageError | None:
        """Report the steps that have ended before an error; return the error that a number of theirs is not finite."""
        try:
            self._unread.report_all()
        except StageError as error:
            return error
        except Exception:  # noqa: BLE001 -- the error that ends the training is raised
            _log.exception("the numbers of the last step cannot be read")
        return None

    def _save_after_error(self, *, newer: bool) -> None:
        """Finish the last write, and save a `newer` state, without hiding the error that ends the training."""
        try:
            if newer:
                self._save_finished()
            else:
                self._writer.wait()
        except StageError as error:
            _log.error("the state of the last step is not saved: %s", error)
        except Exception:  # noqa: BLE001 -- the error that ends the training is raised
            _log.exception("the state of the last step is not saved")

    def _submit(self, finished: StepEnd) -> None:
        """Copy the state of the last finished step, and let it be written; wait for the write before it."""
        # Nothing is saved whose loss or gradient is not finite.
        self._unread.report_all()
        # The copies share the memory of the last ones.
        self._writer.wait()
        optimizer: Any = self.optimizer
        schedule: Any = self.lr_scheduler
        copied = self._memory.copy(
            {
                "adapter": checkpoint_tensors(self.adapted),
                "optimizer": optimizer.state_dict(),
            }
        )
        callbacks: Any = self.state.stateful_callbacks
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                callbacks[type(callback).__name__] = callback.state()
        snapshot = Snapshot(
            step=finished.step,
            scheduler=schedule.state_dict(),
            randomness=finished.randomness,
            # Later steps append to the history.
            state={**vars(self.state), "log_history": list(self.state.log_history)},
            keep=frozenset()
            if self.selection is None
            else self.selection.steps_to_keep(history_of(self.state.log_history)),
            **copied,
        )
        self._writer.submit(snapshot)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load the adapter's values into the model; peft's own loading would change their type."""
        load_adapter_weights(self.adapted if model is None else model, Path(resume_from_checkpoint))
