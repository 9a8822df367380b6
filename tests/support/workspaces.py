"""Small prepared workspaces: real architectures with random weights, quantized by transformers itself."""

from __future__ import annotations

import json
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from bitsandbytes.nn.modules import Linear4bit
from finetune_trainer.contract.run_spec import RunSpec
from finetune_trainer.model.safetensors_file import read_header
from finetune_trainer.proof.small_run import small_model
from finetune_trainer.quantization.quantize import quantize_model
from finetune_trainer.sources.model import DirectoryModel
from finetune_trainer.telemetry.reporter import NullReporter
from finetune_trainer.workspace.digests import weights_digest
from finetune_trainer.workspace.layout import WorkspaceLayout, write_json_atomically, write_marker
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from tests.support.results import PREPARE

SPEC_HASH = "sha256:" + "1" * 64
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
CONFIGS: dict[str, Any] = {
    "llama": lambda **more: LlamaConfig(**{**_SIZES, "tie_word_embeddings": True, **more}),
    "mistral": lambda **more: MistralConfig(**{**_SIZES, "tie_word_embeddings": False, **more}),
    "qwen3": lambda **more: Qwen3Config(**{**_SIZES, "head_dim": 16, "tie_word_embeddings": False, **more}),
}


def small_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer, trained on a few lines, with the ChatML template."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    core.train_from_iterator([f"say {number}" for number in range(200)], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def write_base(
    folder: Path, family: str, dtype: torch.dtype = torch.bfloat16, shard: str = "5GB", **sizes: int
) -> None:
    """Write a random model of `family` with its tokenizer, as a user would provide it; `sizes` replace members."""
    tokenizer = small_tokenizer()
    torch.manual_seed(7)
    config = CONFIGS[family](
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        **sizes,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(folder, max_shard_size=shard)
    tokenizer.save_pretrained(folder)


def prepare(root: Path, base: Path, rows: int = 24, held_out: int = 8) -> WorkspaceLayout:
    """Write the results of PREPARE to `root`: tables, the base's small files, layout and 4-bit checkpoint."""
    layout = WorkspaceLayout(root)
    layout.base.mkdir(parents=True)
    layout.report.mkdir()
    layout.dataset_report.write_text("{}", encoding="utf-8")
    layout.dataset_page.write_text("<!doctype html><title>Dataset</title>", encoding="utf-8")
    for path in base.iterdir():
        if path.suffix != ".safetensors":
            shutil.copyfile(path, layout.base / path.name)
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=settings, dtype=torch.bfloat16, device_map={"": "cpu"}
    )
    quantized = [name for name, module in model.named_modules() if isinstance(module, Linear4bit)]
    files = []
    state = model.state_dict()
    layout.quantized_model.mkdir()
    model.config.save_pretrained(layout.quantized_model)
    weight_map = {}
    for path in sorted(base.glob("*.safetensors")):
        entries = read_header(path)
        files.append(
            {
                "name": path.name,
                "tensors": [{"name": e.name, "dtype": e.dtype, "shape": list(e.shape)} for e in entries],
            }
        )
        names = [key for e in entries for key in state if key == e.name or key.startswith(f"{e.name}.")]
        _save({key: state[key] for key in names}, layout.quantized_model / path.name)
        weight_map.update(dict.fromkeys(names, path.name))
    if len(files) > 1:
        write_json_atomically(
            layout.quantized_model / "model.safetensors.index.json",
            {"metadata": {}, "weight_map": weight_map},
        )
    write_json_atomically(layout.base_layout, {"files": files, "quantized": quantized})
    _write_tables(layout, rows, held_out)
    dataset = PREPARE.dataset.model_copy(update={"digest": "sha256:" + "2" * 64, "training_examples": rows})
    with ThreadPoolExecutor(1) as threads:
        digest = weights_digest(layout.quantized_model, [str(file["name"]) for file in files], threads)
    described = PREPARE.model.model_copy(update={"digest": digest})
    result = PREPARE.model_copy(update={"dataset": dataset, "model": described})
    write_marker(layout, "prepare", SPEC_HASH, result.document())
    return layout


def prepare_by_trainer(root: Path, base: Path, rows: int = 24, held_out: int = 8) -> WorkspaceLayout:
    """Do as `prepare` does, but quantize with the trainer: transformers keeps experts in 16 bits."""
    layout = WorkspaceLayout(root)
    root.mkdir()
    model = quantize_model(DirectoryModel(base), layout, NullReporter())
    layout.report.mkdir()
    layout.dataset_report.write_text("{}", encoding="utf-8")
    layout.dataset_page.write_text("<!doctype html><title>Dataset</title>", encoding="utf-8")
    _write_tables(layout, rows, held_out)
    dataset = PREPARE.dataset.model_copy(update={"digest": "sha256:" + "2" * 64, "training_examples": rows})
    result = PREPARE.model_copy(update={"dataset": dataset, "model": model.result()})
    write_marker(layout, "prepare", SPEC_HASH, result.document())
    return layout


def prepare_small(root: Path, kind: str) -> WorkspaceLayout:
    """Write a small random model of a type of transformers to `root`/base, and the results of PREPARE to `root`/workspace."""
    tokenizer = small_tokenizer()
    config = AutoConfig.for_model(kind)
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    config.bos_token_id = None
    small_model(config).to(torch.bfloat16).save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    return prepare_by_trainer(root / "workspace", root / "base")


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata={"format": "pt"})


def _write_tables(layout: WorkspaceLayout, rows: int, held_out: int) -> None:
    """Write questions `say N` with the answer `N N` and masked prompts, which a few steps can learn."""
    tokenizer = small_tokenizer()
    numbers = random.Random(3).sample(range(200), rows + held_out)  # noqa: S311 -- test data
    layout.training_table.parent.mkdir()
    for path, chosen in (
        (layout.training_table, numbers[:rows]),
        (layout.validation_table, numbers[rows:]),
    ):
        examples = []
        for row, number in enumerate(chosen, start=1):
            question = {"role": "user", "content": f"say {number}"}
            answer = {"role": "assistant", "content": f"{number} {number}"}
            prompt = tokenizer.apply_chat_template([question], add_generation_prompt=True, tokenize=False)
            whole = str(tokenizer.apply_chat_template([question, answer], tokenize=False)).removesuffix("\n")
            start = len(tokenizer(str(prompt))["input_ids"])
            ids = tokenizer(whole)["input_ids"]
            examples.append({"row": row, "input_ids": ids, "labels": [-100] * start + ids[start:]})
        schema = pa.schema(
            {"row": pa.int32(), "input_ids": pa.list_(pa.int32()), "labels": pa.list_(pa.int32())}
        )
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            writer.write_table(pa.Table.from_pylist(examples, schema))


def run_spec(root: Path, output: Path, device: str = "cpu", **training: Any) -> RunSpec:
    """Return a run spec for the workspace `root`; `training` overrides members of the run's training."""
    settings: dict[str, Any] = {
        "maximumSteps": 6,
        "learningRate": 0.005,
        "effectiveBatchSize": 4,
        "microBatchSize": 2,
        "maximumLength": 128,
        "lora": {"rank": 4, "alpha": 8, "dropout": 0, "targetModules": "AllLinear", "variant": "Standard"},
        "quantization": "NF4",
        "seed": 11,
        "schedule": {"type": "Cosine", "warmupRatio": 0.0},
        "gradientCheckpointing": False,
        "checkpoint": {"intervalSteps": 100},
        **training,
    }
    document = {
        "version": "1.0",
        "job": {"namespace": "team", "name": "numbers", "uid": "u1"},
        "specHash": SPEC_HASH,
        "attempt": 0,
        "device": device,
        "model": {
            "source": {"kind": "Directory", "path": "/source/model/tiny"},
            "chatTemplateArguments": {"enable_thinking": False},
        },
        "dataset": {
            "source": {"kind": "File", "path": "/source/dataset/rows.jsonl"},
            "validation": {"fraction": 0.1},
            "reasoning": "Keep",
            "rejectedRows": {"maximumFraction": 0.01},
        },
        "training": settings,
        # Generated answers take time, and tests/unit/trainer/stages/train/test_evaluate.py has them.
        "evaluation": {"maximumRows": 8, "minimumRows": 8, "generatedRows": 0},
        "output": {
            "artifacts": ["Adapter", "Merged"],
            "destination": {"kind": "Directory", "path": str(output), "uri": "pvc://team/models/numbers"},
        },
        "workspace": {"path": str(root)},
        "telemetry": {"port": 8080},
        "limits": {"datasetBytes": 1000000, "downloadSeconds": 60, "allowPrivateAddresses": False},
    }
    return RunSpec.model_validate_json(json.dumps(document))
