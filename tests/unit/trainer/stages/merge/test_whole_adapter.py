"""An adapter of a model that also sees or hears loads onto the class of the whole model."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import torch
from finetune_trainer.proof.canaries import LORA
from finetune_trainer.proof.small_run import SmallRun
from finetune_trainer.stages.merge.whole_adapter import name_whole_modules
from finetune_trainer.stages.train.adapter import save_adapter
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForMultimodalLM

if TYPE_CHECKING:
    from pathlib import Path


def test_peft_loads_the_adapter_onto_the_whole_model(tmp_path: Path) -> None:
    run = SmallRun(tmp_path, LORA)
    run.build(AutoConfig.for_model("gemma3"))
    run.prepare()
    run.adapt()
    run.train(1, packed=False)
    save_adapter(run.adapted, run.workspace.adapter, "small")
    shutil.copytree(run.workspace.adapter, tmp_path / "adapter")
    name_whole_modules(tmp_path / "adapter", run.workspace.base)
    before = load_file(run.workspace.adapter / "adapter_model.safetensors")
    whole = AutoModelForMultimodalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    adapted = PeftModel.from_pretrained(whole, tmp_path / "adapter")
    loaded = {
        name: tensor
        for name, tensor in adapted.named_parameters()
        if "lora_" in name and "vision" not in name
    }
    assert len(loaded) == len(before)
    for name, tensor in before.items():
        own = name.replace(".model.model.", ".model.model.language_model.").replace(
            ".weight", ".default.weight"
        )
        assert torch.equal(loaded[own], tensor), name
    assert not any("vision" in name for name, _ in adapted.named_parameters() if "lora_" in name)


def test_an_adapter_of_a_text_model_keeps_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"as it is")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    name_whole_modules(tmp_path / "adapter", tmp_path)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes() == b"as it is"
