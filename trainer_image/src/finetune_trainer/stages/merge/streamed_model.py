"""Runs a model once while its weights stay in its files: each weight is read when a layer needs it, and only once.

The batch may hold the same rows several times, once for each variant of the weights. A linear layer applies to each
part of the batch the weight of its variant. The memory is that of the batch and of one block of a weight.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from accelerate import init_empty_weights
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM

from finetune_trainer.model.load import attention_implementation
from finetune_trainer.model.matrix_stack import MatrixStack, use_own_experts
from finetune_trainer.model.output_head import OutputHead, hidden_states, output_head
from finetune_trainer.model.packed_parameters import packed_parameters
from finetune_trainer.model.text_class import provide_text_class
from finetune_trainer.model.text_part import find_text_part
from finetune_trainer.model.weight_places import Rows, weight_places
from finetune_trainer.stages.merge.tensor_files import row_blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from finetune_trainer.data.masking.example import Example
    from finetune_trainer.model.packed_parameters import PackedParameter
    from finetune_trainer.model.text_part import TextPart
    from finetune_trainer.stages.merge.tensor_files import TensorFiles

# A module other than a linear layer or an embedding stays in memory up to this size. Some architectures read such
# parameters outside of the module that owns them.
_RESIDENT_ELEMENTS = 16 * 1024 * 1024
_LOGITS_AT_ONCE = 16 * 1024 * 1024


class Weights(Protocol):
    """The weights of a model's linear layers, in every variant."""

    variants: int

    def blocks(self, name: str) -> Iterator[tuple[int, tuple[torch.Tensor, ...]]]:
        """Yield (first row, float32 rows of each variant) of the weight `name` in order.

        One tensor instead of `variants` tensors is the weight of all variants.
        """

    def span(self, name: str, first: int, count: int) -> tuple[torch.Tensor, ...]:
        """Return `count` rows of the weight `name` from row `first` on, in the same way."""


class PlainWeights:
    """The weights as the files have them: one variant."""

    variants = 1

    def __init__(self, files: TensorFiles) -> None:
        self._files = files

    def blocks(self, name: str) -> Iterator[tuple[int, tuple[torch.Tensor, ...]]]:
        """Yield the rows of the file."""
        for first, rows in self._files.blocks(name):
            yield first, (rows,)

    def span(self, name: str, first: int, count: int) -> tuple[torch.Tensor, ...]:
        """Return the rows of the file."""
        return (self._files.span(name, first, count),)


class _OneVariant:
    """One variant of the weights alone."""

    variants = 1

    def __init__(self, weights: Weights, variant: int) -> None:
        self._weights, self._variant = weights, variant

    def blocks(self, name: str) -> Iterator[tuple[int, tuple[torch.Tensor, ...]]]:
        for first, variants in self._weights.blocks(name):
            yield first, (self._of(variants),)

    def span(self, name: str, first: int, count: int) -> tuple[torch.Tensor, ...]:
        return (self._of(self._weights.span(name, first, count)),)

    def _of(self, variants: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return variants[self._variant if len(variants) > 1 else 0]


class _StreamedStack(MatrixStack):
    """Matrices of experts, or of a `Conv1D`, that are read when they multiply."""

    weights: Weights | None = None

    def product(self, inputs: torch.Tensor, expert: int, *, turned: bool) -> torch.Tensor:
        """Multiply as MatrixStack does."""
        if self.weights is None:
            raise RuntimeError("the weights of a streamed model must be given before it runs, found none")
        parts = []
        for part in sorted(self.parameter.parts, key=lambda part: part.first):
            if part.expert in (None, expert):
                rows = part.last - part.first
                first = expert * rows if part.expert is None else 0
                parts.append(self.weights.span(part.tensor, first, rows)[0])
        matrix = parts[0] if len(parts) == 1 else torch.cat(parts)
        return functional.linear(inputs, matrix) if turned else inputs @ matrix


@dataclass(frozen=True)
class Scores:
    """What one variant predicts: all values follow the order of the rows, and in a row that of its tokens.

    `log_probabilities` (nats, float32) are those of the supervised tokens, `best` the ids that are most probable in
    their places, and `logits` (positions, vocabulary) the float32 logits at the recorded positions.
    """

    log_probabilities: torch.Tensor
    best: torch.Tensor
    logits: torch.Tensor


class StreamedModel:
    """A causal language model of a folder with config.json and weight files, computing in float32 on the CPU."""

    def __init__(self, folder: Path, files: TensorFiles) -> None:
        """Build the model without its weights.

        Raises StageError(ArtifactVerificationFailed) if the files lack a tensor that the config asks for.
        """
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        part = find_text_part(config)
        config = config if part is None else part.config
        provide_text_class(config)
        # Buffers are not in the files: rotary frequencies, for example, must be computed here.
        with init_empty_weights(include_buffers=False):
            self.model: Any = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, attn_implementation=attention_implementation(config)
            )
        self.model.eval()
        self._files = files
        self._ties = dict(self.model.all_tied_weights_keys)
        packed = packed_parameters(self.model)
        self._places = weight_places(self.model, {parameter.name for parameter in packed})
        self._aliases = _names_in_files(part, files, self._places.renamed)
        self._streamed: dict[int, Rows] = {}
        use_own_experts(self.model)
        self._stacks = self._place_stacks(packed)
        self._place_parameters()
        for name, buffer in self.model.named_buffers():
            tensor = self.tensor(name)
            if tensor in files:
                buffer.copy_(files.whole(tensor))

    def tensor(self, name: str) -> str:
        """Return the name in the files of a parameter, which may be tied to another one."""
        partners = [other for pair in self._ties.items() if name in pair for other in pair if other != name]
        names = [self._in_files(known) for known in (name, *partners)]
        return next((other for other in (*names, name, *partners) if other in self._files), name)

    @torch.no_grad()
    def score(
        self, examples: Sequence[Example], positions: Sequence[Sequence[int]], weights: Weights
    ) -> list[Scores]:
        """Run all rows in all variants through the model once; return the scores of each variant.

        `positions` has for each row those of its supervised positions whose logits are kept.
        """
        length = max(len(example.input_ids) for example in examples)
        ids = torch.zeros((len(examples), length), dtype=torch.long)
        for row, example in enumerate(examples):
            ids[row, : len(example.input_ids)] = torch.tensor(example.input_ids)
        # The tokens of an expert are of any variant, so a model with experts takes one variant after another.
        runs: Sequence[Weights] = [weights]
        if self._stacks:
            runs = [_OneVariant(weights, variant) for variant in range(weights.variants)]
        scores = []
        for one in runs:
            for stack in self._stacks:
                stack.weights = one
            with _Streaming(self._streamed, partial(self._linear, one), self._embed):
                states = hidden_states(self.model, ids.repeat(one.variants, 1))
            scores.extend(self._predict(states, examples, positions, one))
        return scores

    def _place_stacks(self, packed: Sequence[PackedParameter]) -> list[_StreamedStack]:
        stacks = []
        for one in packed:
            parts = tuple(replace(part, tensor=self._in_files(part.tensor)) for part in one.parts)
            parameter = replace(one, parts=parts)
            for part in parts:
                self._files.entry(part.tensor)
            path, _, name = parameter.name.rpartition(".")
            owner = self.model.get_submodule(path)
            del owner._parameters[name]  # noqa: SLF001 -- torch has no other way to replace a parameter by a module
            stacks.append(_StreamedStack(parameter))
            setattr(owner, name, stacks[-1])
        return stacks

    def _place_parameters(self) -> None:
        """Keep small parameters in memory; the weights of linear layers and embeddings stay in the files."""
        for path, module in self.model.named_modules():
            streamed = type(module) is torch.nn.Linear or isinstance(module, torch.nn.Embedding)
            own = dict(module.named_parameters(recurse=False))
            names = {name: f"{path}.{name}" if path else name for name in own}
            for name in names.values():
                for rows in self._rows(name):
                    self._files.entry(rows.tensor)
            if streamed and len(self._rows(names["weight"])) == 1:
                self._streamed[id(own.pop("weight"))] = self._rows(names.pop("weight"))[0]
            load = partial(self._load, module, names)
            if sum(parameter.numel() for parameter in own.values()) <= _RESIDENT_ELEMENTS:
                load()
            else:
                module.register_forward_pre_hook(lambda *_arguments, load=load: load())
                module.register_forward_hook(partial(_unload, own))

    def _load(self, module: Any, names: dict[str, str]) -> None:
        for name, known in names.items():
            found = [self._value(rows) for rows in self._rows(known)]
            value = found[0] if len(found) == 1 else torch.cat(found)
            module._parameters[name] = torch.nn.Parameter(value, requires_grad=False)  # noqa: SLF001 -- torch has no other way to replace a parameter on the meta device

    def _rows(self, name: str) -> tuple[Rows, ...]:
        """Return the rows of the files that are a parameter of the model."""
        if name in self._places.joined:
            return tuple(self._all_rows(self._in_files(tensor)) for tensor in self._places.joined[name])
        rows = self._places.cut.get(name)
        if rows is not None:
            return (replace(rows, tensor=self._in_files(rows.tensor)),)
        return (self._all_rows(self.tensor(name)),)

    def _in_files(self, tensor: str) -> str:
        """Return the name in the files of a tensor that has its name in weight files of the text model alone."""
        return self._aliases.get(tensor, tensor)

    def _value(self, rows: Rows) -> torch.Tensor:
        whole = self._files.whole(rows.tensor)
        return whole if whole.ndim == 0 else whole[rows.first : rows.last]

    def _all_rows(self, tensor: str) -> Rows:
        shape = self._files.entry(tensor).shape
        return Rows(tensor, 0, shape[0] if shape else 1)

    def _embed(self, rows: Rows, ids: torch.Tensor) -> torch.Tensor:
        """Look the ids up; only their rows are read."""
        used, places = (ids + rows.first).unique(return_inverse=True)
        return self._files.rows(rows.tensor, used.tolist())[places]

    def _linear(
        self, weights: Weights, rows: Rows, inputs: torch.Tensor, bias: torch.Tensor | None, outputs: int
    ) -> torch.Tensor:
        """Apply to each part of the batch the weight of its variant."""
        result = inputs.new_empty((*inputs.shape[:-1], outputs))
        for first, variants in self._blocks(weights, rows):
            last = first + variants[0].shape[0]
            for part, found, weight in zip(
                inputs.tensor_split(len(variants)), result.tensor_split(len(variants)), variants, strict=True
            ):
                found[..., first:last] = functional.linear(part, weight)
        return result if bias is None else result.add_(bias)

    def _blocks(self, weights: Weights, rows: Rows) -> Iterator[tuple[int, tuple[torch.Tensor, ...]]]:
        """Yield (first row, rows of each variant) of a weight that is a whole tensor, or rows of one."""
        shape = self._files.entry(rows.tensor).shape
        if rows.count == shape[0]:
            yield from weights.blocks(rows.tensor)
            return
        for first, count in row_blocks(rows.count, shape[-1]):
            yield first, weights.span(rows.tensor, rows.first + first, count)

    def _predict(
        self,
        states: torch.Tensor,
        examples: Sequence[Example],
        positions: Sequence[Sequence[int]],
        weights: Weights,
    ) -> list[Scores]:
        head = output_head(self.model)
        parts = states.reshape(weights.variants, len(examples), *states.shape[1:])
        # The state at position t - 1 predicts token t.
        places = [(row, position - 1) for row, e in enumerate(examples) for position in e.supervised]
        targets = torch.tensor([e.labels[position] for e in examples for position in e.supervised])
        kept = torch.tensor(
            [
                position in set(chosen)
                for e, chosen in zip(examples, positions, strict=True)
                for position in e.supervised
            ],
            dtype=torch.bool,
        )
        rows, columns = (torch.tensor(axis) for axis in zip(*places, strict=True))
        vocabulary = head.projection.weight.shape[0]
        predictions = [
            _Prediction(part[rows, columns], targets, kept, vocabulary) for part in parts.unbind(0)
        ]
        for first, variants in self._blocks(weights, self._streamed[id(head.projection.weight)]):
            for index, prediction in enumerate(predictions):
                prediction.add(first, variants[index if len(variants) > 1 else 0], head)
        return [prediction.scores() for prediction in predictions]


def _names_in_files(part: TextPart | None, files: TensorFiles, renamed: Mapping[str, str]) -> dict[str, str]:
    """Return the names in `files` of tensors that the model, or weight files of the text model alone, call otherwise.

    `renamed` is that of `WeightPlaces`.
    """
    if part is None:
        return {known: name for name, known in renamed.items()}
    own = {text: name for name in files.names if (text := part.text_name(name)) is not None}
    return own | {renamed[text]: name for text, name in own.items() if text in renamed}


class _Prediction:
    """Accumulates one variant's scores over slices of the vocabulary."""

    def __init__(
        self, states: torch.Tensor, targets: torch.Tensor, kept: torch.Tensor, vocabulary: int
    ) -> None:
        self._states, self._targets, self._kept = states, targets, kept
        count = len(targets)
        self._largest = torch.full((count,), -torch.inf)
        self._best = torch.zeros(count, dtype=torch.long)
        self._total = torch.zeros(count, dtype=torch.float64)
        self._chosen = torch.full((count,), torch.nan)
        self._logits = torch.empty(int(kept.sum()), vocabulary)

    def add(self, first: int, weight: torch.Tensor, head: OutputHead) -> None:
        """Add the logits of the vocabulary from `first` on; `weight` has these rows of the projection."""
        size = max(1, _LOGITS_AT_ONCE // max(1, len(self._targets)))
        for start in range(0, weight.shape[0], size):
            self._add(first + start, weight[start : start + size], head)

    def _add(self, first: int, weight: torch.Tensor, head: OutputHead) -> None:
        bias = head.projection.bias
        last = first + weight.shape[0]
        logits = functional.linear(self._states, weight, None if bias is None else bias[first:last])
        logits.mul_(head.scale)
        if head.softcap is not None:
            logits.div_(head.softcap).tanh_().mul_(head.softcap)
        self._logits[:, first:last] = logits[self._kept]
        inside = (self._targets >= first) & (self._targets < last)
        columns = (self._targets - first).clamp(0, last - first - 1)
        found = logits.gather(1, columns.unsqueeze(1)).squeeze(1)
        self._chosen = torch.where(inside, found, self._chosen)
        largest, best = logits.max(dim=1)
        self._best = torch.where(largest > self._largest, best + first, self._best)
        together = torch.maximum(self._largest, largest)
        # The sum of exponentials, scaled to the largest logit so far.
        self._total *= (self._largest - together).double().exp()
        self._total += (logits - together.unsqueeze(1)).exp().sum(dim=1, dtype=torch.float64)
        self._largest = together

    def scores(self) -> Scores:
        """Return the scores after the last slice."""
        totals = self._largest.double() + self._total.log()
        return Scores((self._chosen.double() - totals).float(), self._best, self._logits)


class _Streaming(TorchFunctionMode):
    """Computes linear layers and embeddings whose weights are in files; every other function runs as it is."""

    def __init__(
        self,
        names: dict[int, Rows],
        linear: Callable[[Rows, torch.Tensor, torch.Tensor | None, int], torch.Tensor],
        embed: Callable[[Rows, torch.Tensor], torch.Tensor],
    ) -> None:
        super().__init__()
        self._names, self._linear, self._embed = names, linear, embed

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if function in (functional.linear, functional.embedding):
            weight = args[1] if len(args) > 1 else given["weight"]
            name = self._names.get(id(weight))
            if name is not None and function is functional.linear:
                bias = args[2] if len(args) > 2 else given.get("bias")
                return self._linear(name, args[0], bias, weight.shape[0])
            if name is not None:
                return self._embed(name, args[0])
        return function(*args, **given)


def _unload(empty: dict[str, Any], module: Any, _inputs: Any, _output: Any) -> None:
    module._parameters.update(empty)  # noqa: SLF001 -- as in `_load`
