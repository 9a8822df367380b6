"""For many architectures, a model that reads its weights from files predicts what transformers predicts."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from finetune_trainer.data.masking.example import IGNORED, Example
from finetune_trainer.errors import StageError
from finetune_trainer.model.safetensors_file import PlannedTensor, TensorWriter
from finetune_trainer.stages.merge import streamed_model, tensor_files
from finetune_trainer.stages.merge.streamed_model import PlainWeights, Scores, StreamedModel
from finetune_trainer.stages.merge.tensor_files import TensorFiles
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from tests.support.architectures import FAMILIES, tiny

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EXAMPLES = [
    Example([5, 6, 7, 8, 9, 10, 11], [IGNORED, IGNORED, 7, 8, 9, 10, 11], row=1),
    Example([1, 20, 30, 40], [IGNORED, 20, IGNORED, 40], row=2),
]
POSITIONS = [(3, 6), (1, 3)]
# Position 3 and 6 of the five supervised ones of the first row, and both of the second.
KEPT = [1, 4, 5, 6]


class Mirrored:
    """Two variants in one pass: the file's weights, and those with reversed rows in the layers that `part` names."""

    variants = 2

    def __init__(self, files: TensorFiles, part: str) -> None:
        self._files, self._part = files, part

    def blocks(self, name: str) -> Iterator[tuple[int, tuple[torch.Tensor, ...]]]:
        for first, rows in self._files.blocks(name):
            yield first, (rows, rows.flip(1)) if self._part in name else (rows,)

    def span(self, name: str, first: int, count: int) -> tuple[torch.Tensor, ...]:
        rows = self._files.span(name, first, count)
        return (rows, rows.flip(1)) if self._part in name else (rows,)


def write(model: Any, folder: Path) -> Path:
    """Save the model with the names of its modules: some families have other names in their files."""
    folder.mkdir()
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    tied = set(model.all_tied_weights_keys)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if name not in tied}
    save_file(state, folder / "model.safetensors")
    return folder


def expected(model: Any) -> Scores:
    with torch.no_grad():
        logits = torch.cat(
            [
                model(torch.tensor([example.input_ids])).logits[0][
                    [place - 1 for place in example.supervised]
                ]
                for example in EXAMPLES
            ]
        )
    targets = torch.tensor([e.labels[place] for e in EXAMPLES for place in e.supervised])
    chosen = torch.log_softmax(logits.double(), -1).gather(1, targets[:, None])[:, 0].float()
    return Scores(chosen, logits.argmax(-1), logits[KEPT])


def require_equal(found: Scores, wanted: Scores) -> None:
    largest = float(wanted.logits.abs().max())
    assert torch.allclose(found.logits, wanted.logits, atol=1e-5 * largest)
    assert torch.allclose(found.log_probabilities, wanted.log_probabilities, atol=1e-5 * largest)
    assert torch.equal(found.best, wanted.best)


# Falcon has no linear layer of torch's own; another test has it.
@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"falcon"}))
def test_predictions_of_all_variants_are_those_of_transformers(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pass over blocks of a few rows. The variants differ in the first kind of linear layer."""
    monkeypatch.setattr(tensor_files, "ELEMENTS_AT_ONCE", 500)
    model = tiny(family)
    plain = {name: module for name, module in model.named_modules() if type(module) is torch.nn.Linear}
    part = next(iter(plain)).rpartition(".")[2]
    folder = write(model, tmp_path / "model")
    with TensorFiles(folder) as files:
        first, second = StreamedModel(folder, files).score(EXAMPLES, POSITIONS, Mirrored(files, part))
        matrices = [name for name in files.names if name.endswith(f"{part}.weight")]
        assert {files.bytes_read[name] / files.bytes(name) for name in matrices} == {1.0}
        assert not [name for name in files.names if not files.bytes_read[name]]
    require_equal(first, expected(model))
    for name, module in plain.items():
        if name.rpartition(".")[2] == part:
            module.weight.data = module.weight.data.flip(1)
    require_equal(second, expected(model))
    assert not torch.allclose(first.logits, second.logits, atol=1e-2)


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi"])
def test_every_weight_is_read_once_whatever_the_number_of_rows_and_variants(
    family: str, tmp_path: Path
) -> None:
    """Llama has its own output head, Gemma a tied one, and Phi biases. An embedding is read for its used rows only."""
    model = tiny(family)
    folder = write(model, tmp_path / "model")
    many = [Example([*range(row, row + 9)], [IGNORED, *range(row + 1, row + 9)], row) for row in range(3, 40)]
    positions = [example.supervised for example in many]
    with TensorFiles(folder) as files:
        StreamedModel(folder, files).score(many, positions, Mirrored(files, "proj"))
        read = dict(files.bytes_read)
        sizes = {name: files.bytes(name) for name in files.names}
    embedding = "model.embed_tokens.weight"
    used = len({token for example in many for token in example.input_ids}) * 32 * 4
    tied = embedding in model.all_tied_weights_keys.values()
    whole = sizes.pop(embedding)
    assert read.pop(embedding) == used + (whole if tied else 0)
    assert read == sizes


def test_nothing_but_small_tensors_stays_in_memory(tmp_path: Path) -> None:
    model = tiny("mistral")
    folder = write(model, tmp_path / "model")
    with TensorFiles(folder) as files:
        streamed = StreamedModel(folder, files)
        resident = {name for name, tensor in streamed.model.named_parameters() if not tensor.is_meta}
    assert resident == {name for name, tensor in model.named_parameters() if tensor.dim() == 1}


def test_a_large_module_of_another_kind_is_in_memory_only_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Falcon has its own linear layer, and every module counts as large here."""
    monkeypatch.setattr(streamed_model, "_RESIDENT_ELEMENTS", 0)
    model = tiny("falcon")
    folder = write(model, tmp_path / "model")
    with TensorFiles(folder) as files:
        streamed = StreamedModel(folder, files)
        assert all(parameter.is_meta for parameter in streamed.model.parameters())
        (found,) = streamed.score(EXAMPLES, POSITIONS, PlainWeights(files))
        assert all(parameter.is_meta for parameter in streamed.model.parameters())
    require_equal(found, expected(model))


def test_a_model_without_a_tensor_of_its_config_is_refused(tmp_path: Path) -> None:
    """A loader would fill it with random values."""
    model = tiny("gemma")
    folder = write(model, tmp_path / "model")
    model.config.tie_word_embeddings = False
    model.config.save_pretrained(folder)
    with (
        TensorFiles(folder) as files,
        pytest.raises(StageError, match=r"must have the tensor lm_head\.weight"),
    ):
        StreamedModel(folder, files)


_MEASURE = """
import resource, sys
from pathlib import Path
from finetune_trainer.data.masking.example import Example
from finetune_trainer.stages.merge.streamed_model import PlainWeights, StreamedModel
from finetune_trainer.stages.merge.tensor_files import TensorFiles

rows = [Example([*range(16)], [-100, *range(1, 16)], 1)] * 2
with TensorFiles(Path(sys.argv[1])) as files:
    model = StreamedModel(Path(sys.argv[1]), files)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model.score(rows, [(3,), (4,)], PlainWeights(files))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert files.bytes_read["lm_head.weight"] == files.bytes("lm_head.weight")
print(after - before)
"""


@pytest.mark.slow
def test_the_memory_of_a_pass_does_not_depend_on_the_size_of_the_model(tmp_path: Path) -> None:
    """The files have 0.8 GB, all of it zeros that take no space on the disk; in float32 they would take 1.6 GB."""
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=4,
        num_attention_heads=16,
        num_key_value_heads=16,
    )
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path)
    planned = [PlannedTensor(name, "BF16", shape) for name, shape in shapes.items()]
    TensorWriter(tmp_path / "model.safetensors", planned, ()).finish()
    assert sum(tensor.bytes for tensor in planned) > 0.79e9
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(tmp_path)], check=True, capture_output=True, text=True
    )
    assert int(done.stdout) * 1024 < 300e6
