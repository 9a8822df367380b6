"""Each rank reads its own part of a 4-bit checkpoint, and the parts of all are the whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.dequantized import dequantize_weights
from finetune_trainer.model.load import load_quantized, quantized_modules
from finetune_trainer.model.packed_weight import packed_weights
from finetune_trainer.model.sharding import load
from finetune_trainer.model.sharding.load import load_shell
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor

from tests.support.ranks import imagined_rank
from tests.support.workspaces import prepare, prepare_small, write_base

PACKED = ("qwen3_moe", "gpt_oss", "gpt2", "kimi_linear")
"""A tensor for each matrix of an expert, one for all experts with biases, `Conv1D`, and a matrix of several tensors."""


@pytest.fixture(scope="module", params=["llama", "mistral", *PACKED])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the checkpoint of a model: with tied embeddings, with a head of its own, and with matrices in other forms."""
    root = tmp_path_factory.mktemp(f"sharded-{request.param}")
    if request.param in PACKED:
        return prepare_small(root, request.param).quantized_model
    write_base(root / "base", request.param, shard="60KB", hidden_size=48, num_attention_heads=4)
    return prepare(root / "workspace", root / "base").quantized_model


def _parts(checkpoint: Path, ranks: int, *, dequantized: bool) -> list[dict[str, torch.Tensor]]:
    """Return what each rank holds, by name."""
    found = []
    for rank in range(ranks):
        shell = load_shell(checkpoint, "cpu", dequantized=dequantized)
        with imagined_rank(rank, ranks) as mesh:
            shell.fill(shell.model, mesh)
            found.append(
                {
                    name: value.to_local() if isinstance(value, DTensor) else value
                    for name, value in shell.model.named_parameters()
                }
            )
    return found


def _expected(checkpoint: Path, *, dequantized: bool) -> dict[str, torch.Tensor]:
    model: Any = load_quantized(checkpoint, "cpu")
    scales = {
        f"{name}.absmax": module.weight.quant_state.absmax[:, None]
        for name, module in quantized_modules(model).items()
    }
    if dequantized:
        dequantize_weights(model)
        scales = {}
    for name, weight in packed_weights(model).items():
        # Tensors of the weight files one after another; one of several matrices has those of all experts.
        rows = [rows for expert in weight.parts for rows in expert]
        scales[f"{name}.packed"] = torch.cat([each.packed for each in rows])[:, None]
        scales[f"{name}.absmax"] = torch.cat([each.scales for each in rows])[:, None]
    return {**{name: value.data for name, value in model.named_parameters()}, **scales}


@pytest.mark.parametrize("dequantized", [False, True], ids=["packed", "dequantized"])
@pytest.mark.parametrize("ranks", [1, 3])
def test_the_parts_of_all_ranks_are_the_whole_model_bit_for_bit(
    checkpoint: Path, ranks: int, *, dequantized: bool
) -> None:
    expected = _expected(checkpoint, dequantized=dequantized)
    parts = _parts(checkpoint, ranks, dequantized=dequantized)
    assert all(part.keys() == expected.keys() for part in parts)
    for name, value in expected.items():
        of_ranks = [part[name] for part in parts]
        if value.ndim < 2:
            assert all(torch.equal(one, value) for one in of_ranks), name
        else:
            assert torch.equal(torch.cat(of_ranks), value), name


def test_a_rank_reads_and_holds_its_share(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors and the constants of quantization are all that every rank has."""
    read = 0
    rows = load._Tensors.rows

    def counted(self: Any, name: str, first: int, last: int) -> torch.Tensor:
        nonlocal read
        found = rows(self, name, first, last)
        read += found.nbytes
        return found

    monkeypatch.setattr(load._Tensors, "rows", counted)
    (whole,) = _parts(checkpoint, 1, dequantized=False)
    read_alone, read = read, 0
    parts = _parts(checkpoint, 4, dequantized=False)
    # Each matrix is cut into equal parts of its rows, the last of which may be shorter.
    assert read == read_alone
    vectors = sum(value.nbytes for value in whole.values() if value.ndim < 2)
    matrices = sum(value.nbytes for value in whole.values()) - vectors
    for part in parts:
        assert sum(value.nbytes for value in part.values()) <= vectors + matrices * 0.26


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("sarvam_moe", r"q_proj.weight of sarvam_moe as rows of another one"),
        ("zamba2", r"layers.3.shared_transformer.*.weight of zamba2 as model.layers.2.shared_transformer"),
    ],
)
def test_what_cannot_be_shared_is_refused_with_the_remedy(kind: str, found: str, tmp_path: Path) -> None:
    checkpoint = prepare_small(tmp_path, kind).quantized_model
    remedy = rf"{found}.*; use parallelism DataParallel, or one GPU"
    with pytest.raises(StageError, match=remedy) as caught:
        load_shell(checkpoint, "cpu", dequantized=False)
    assert caught.value.reason is Reason.UNSUPPORTED_MODEL


@pytest.mark.parametrize("kind", ["norm", "scales"])
def test_a_missing_tensor_is_named(checkpoint: Path, tmp_path: Path, kind: str) -> None:
    tensors: dict[str, torch.Tensor] = {}
    for path in checkpoint.iterdir():
        if path.suffix == ".safetensors":
            tensors |= load_file(path)
        elif path.name != "model.safetensors.index.json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    endings = {"norm": ("norm.weight", "ln_1.weight"), "scales": (".absmax",)}[kind]
    lost = next(name for name in sorted(tensors, reverse=True) if name.endswith(endings))
    del tensors[lost]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    shell = load_shell(tmp_path, "cpu", dequantized=False)
    # The last matrix is in the part of the last rank.
    with imagined_rank(1, 2) as mesh, pytest.raises(StageError, match=lost) as caught:
        shell.fill(shell.model, mesh)
    assert caught.value.reason is Reason.QUANTIZATION_MISMATCH
