"""A whole job on small random weights, with the functions of PREPARE, TRAIN and MERGE.

Base and merged model are in float32, so the merged logits must be those of the trained model up to the order of sums.
"""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig

from finetune_trainer.contract.run_spec import Lora
from finetune_trainer.model.attention import attention_of
from finetune_trainer.model.layout import read_base_layout
from finetune_trainer.model.load import check_quantized, load_quantized
from finetune_trainer.model.output_head import language_model
from finetune_trainer.model.packed_attention import using_attention
from finetune_trainer.model.small_config import VOCABULARY, small_document
from finetune_trainer.model.text_model import runnable_on_text
from finetune_trainer.model.text_part import auto_class
from finetune_trainer.quantization.quantize import quantize_model
from finetune_trainer.sources.model import DirectoryModel
from finetune_trainer.stages.merge.exact import QuantizedBase, WeightFiles
from finetune_trainer.stages.merge.update import read_updates
from finetune_trainer.stages.merge.weights import MergeInputs, check_weights, merge_weights, require_matching
from finetune_trainer.stages.train.adapter import add_adapter, save_adapter
from finetune_trainer.stages.train.batching import Batching
from finetune_trainer.stages.train.loss import Objective
from finetune_trainer.stages.train.passes import Pass, Step, StepCollator
from finetune_trainer.telemetry.reporter import NullReporter
from finetune_trainer.workspace.layout import WorkspaceLayout

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from finetune_trainer.model.layout import BaseLayout

LENGTHS = (21, 13, 9, 17)
"""Tokens of the rows. The sliding window of the small model is shorter."""
_SPREAD = 0.05
_RATE = 2e-2


@dataclass(frozen=True)
class Compared:
    """The largest difference between merged and trained logits, and the effect of the adapter: fractions of the largest logit."""

    difference: float
    effect: float

    @property
    def equal(self) -> bool:
        """Whether they differ by the order of sums alone."""
        return self.difference <= _SAME and self.difference * _TOLD_APART <= self.effect


_SAME = 2e-3
_TOLD_APART = 5.0


class SmallRun:
    """One small job in a folder. Its steps are called in order: `prepare`, `adapt`, `train`, `save`, `merge`, `compare`."""

    def __init__(self, folder: Path, lora: Lora, vocabulary: int | None = VOCABULARY) -> None:
        """`vocabulary` is the number of ids. None keeps that of the model."""
        self._folder = folder
        self._ids = vocabulary
        self._lora = lora
        self.workspace = WorkspaceLayout(folder / "workspace")
        self.adapted: Any = None
        self.objective = Objective()

    def build(self, config: Any) -> str:
        """Write a small random model of the architecture of `config`, and return the name of its class.

        Its weights are so large that every part affects the logits. Raises any error of a model that cannot run.
        """
        model = small_model(config, self._ids)
        with torch.no_grad():
            ids = torch.arange(3, 3 + max(LENGTHS))[None] % model.get_input_embeddings().weight.shape[0]
            runnable_on_text(model)(input_ids=ids, use_cache=False)
        model.save_pretrained(self._folder / "base")
        return type(model).__name__

    def prepare(self) -> None:
        """Inspect and quantize the base. Raises StageError as PREPARE does."""
        self.workspace.root.mkdir()
        quantize_model(DirectoryModel(self._folder / "base"), self.workspace, NullReporter())

    @cached_property
    def layout(self) -> BaseLayout:
        """The record of PREPARE."""
        return read_base_layout(self.workspace)

    def adapt(self) -> Any:
        """Load the base and add an adapter. Raises StageError as TRAIN does."""
        model = load_quantized(self.workspace.quantized_model, "cpu")
        check_quantized(model, self.layout)
        torch.manual_seed(11)
        self.adapted = add_adapter(model, self._lora, self.layout.adaptable)
        return self.adapted

    def step(self, *, packed: bool) -> Step:
        """Return the rows of an optimizer step."""
        generator = torch.Generator().manual_seed(3)
        rows = []
        for length in LENGTHS:
            ids = torch.randint(3, self.vocabulary, (length,), generator=generator).tolist()
            rows.append({"input_ids": ids, "labels": [-100] * (length // 2) + ids[length // 2 :]})
        return StepCollator(Batching("Packed" if packed else "Grouped", 64, 2))(rows)

    @property
    def vocabulary(self) -> int:
        """Ids of the small model."""
        rows = int(self.adapted.get_input_embeddings().weight.shape[0])
        return rows if self._ids is None else min(self._ids, rows)

    def gradients(self, step: Step) -> dict[str, torch.Tensor]:
        """Return the gradient of the adapter's weights in a step, by name."""
        self.adapted.zero_grad()
        for one in step.passes:
            with _attending(self.adapted, one):
                loss, balance = self.objective.parts(self.adapted, one)
                share = None if balance is None else balance * (one.tokens / step.tokens)
                self.objective.total(loss / step.learned, share).backward()
        return {
            name: parameter.grad.clone()
            for name, parameter in self.adapted.named_parameters()
            if parameter.grad is not None
        }

    def train(self, steps: int, *, packed: bool) -> None:
        """Train the adapter some steps on the same rows. Raises ArithmeticError if a weight is not finite then."""
        step = self.step(packed=packed)
        trained = [parameter for parameter in self.adapted.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=_RATE)
        self.adapted.train()
        for _ in range(steps):
            self.gradients(step)
            optimizer.step()
        self.adapted.eval()
        if not all(bool(torch.isfinite(parameter).all()) for parameter in trained):
            raise ArithmeticError("the adapter must be finite after training, found a value that is not")

    def merge(self) -> Any:
        """Save the adapter, merge it, and return the model that plain `from_pretrained` loads.

        Raises StageError as MERGE does, and ValueError if the folder lacks a tensor.
        """
        save_adapter(self.adapted, self.workspace.adapter, "small")
        merged = self._folder / "merged"
        merged.mkdir()
        layout = self.layout
        updates = read_updates(self.workspace.adapter, layout)
        require_matching(updates, {name: updates.shape(name) for name in updates}, updates.replaced, layout)
        with WeightFiles(self.workspace.quantized_model, layout.checkpoint_files, layout.text_names) as files:
            merge_weights(
                MergeInputs(files, QuantizedBase(files), updates), layout, merged, lambda _done, _all: None
            )
        check_weights(merged, layout)
        for path in self.workspace.base.glob("*.json"):
            if path != self.workspace.base_layout:
                shutil.copy(path, merged)
        config = AutoConfig.from_pretrained(merged)
        both: Any = auto_class(config).from_pretrained(merged, dtype=torch.float32, output_loading_info=True)
        model, loaded = both
        if loaded["missing_keys"]:
            raise ValueError(
                f"the merged folder must have every tensor, found none named {min(loaded['missing_keys'])}"
            )
        return model.eval()

    @torch.no_grad()
    def compare(self, merged: Any) -> Compared:
        """Compare the merged model with the trained one on one row."""
        ids = self.probe()
        trained = self.adapted(input_ids=ids, use_cache=False).logits
        with self.adapted.disable_adapter():
            base = self.adapted(input_ids=ids, use_cache=False).logits
        found = runnable_on_text(merged)(input_ids=ids, use_cache=False).logits
        largest = float(trained.abs().max())
        return Compared(
            float((found - trained).abs().max()) / largest, float((trained - base).abs().max()) / largest
        )

    def probe(self) -> torch.Tensor:
        """Return the ids (1, tokens) of one row."""
        return torch.randint(3, self.vocabulary, (1, 24), generator=torch.Generator().manual_seed(4))


def small_model(config: Any, vocabulary: int | None = VOCABULARY) -> Any:
    """Return a small random model of the architecture of `config`, in float32. `vocabulary` is that of `small_document`."""
    document = small_document(config.to_dict(), vocabulary)
    document.pop("model_type", None)
    for name in ("quantization_config", "architectures", "auto_map"):
        document.pop(name, None)
    small = AutoConfig.for_model(config.model_type, **document)
    torch.manual_seed(5)
    model: Any = auto_class(small).from_config(small, dtype=torch.float32)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=_SPREAD)
    return model.eval()


@contextmanager
def _attending(adapted: Any, one: Pass) -> Iterator[None]:
    """Let the model attend as a pass needs it."""
    if one.packed is None:
        yield
        return
    choice = attention_of(language_model(adapted).config, "cpu", packed=True)
    with using_attention(adapted, choice.implementation):
        yield
