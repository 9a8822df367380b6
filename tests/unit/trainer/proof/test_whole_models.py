"""Small models that also see or hear go through all stages: their text part is trained, and all else stays byte for byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from finetune_trainer.data.masking.example import IGNORED, Example
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.describe import inspect_base_model
from finetune_trainer.proof.canaries import LORA, try_model
from finetune_trainer.proof.small_run import Compared, SmallRun, small_model
from finetune_trainer.stages.merge.stage import merge
from finetune_trainer.stages.merge.streamed_model import PlainWeights, StreamedModel
from finetune_trainer.stages.merge.tensor_files import TensorFiles
from finetune_trainer.stages.train.stage import train
from finetune_trainer.telemetry.reporter import NullReporter
from transformers import AutoConfig, AutoModelForMultimodalLM

from tests.support.whole_models import bytes_of, rewrite, tensors_of
from tests.support.workspaces import prepare_by_trainer, run_spec, small_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

# One of each layout of the weight files, of a tied head, of sounds, of experts, and of a family without a text class.
WHOLE = {
    "gemma3": "Gemma3ForConditionalGeneration",
    "qwen3_5": "Qwen3_5ForConditionalGeneration",
    "voxtral": "VoxtralForConditionalGeneration",
    "llama4": "Llama4ForConditionalGeneration",
    "qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
}
_STEPS = 4


def journey(
    folder: Path, config: Any, change: Callable[[Path], None] = lambda _base: None
) -> tuple[SmallRun, Any, Compared]:
    """Take a model through all stages; `change` may write its weight files in another form first."""
    run = SmallRun(folder, LORA)
    run.build(config)
    change(folder / "base")
    run.prepare()
    run.adapt()
    run.train(_STEPS, packed=False)
    merged = run.merge()
    return run, merged, run.compare(merged)


def kept(run: SmallRun) -> set[str]:
    """Return the names of the tensors that do not belong to the text model."""
    names = {tensor.name for file in run.layout.files for tensor in file.tensors}
    return {name for name in names if run.layout.text_name(name) is None}


@pytest.mark.parametrize("kind", WHOLE)
def test_the_merged_folder_is_the_whole_model_with_a_tuned_text_part(kind: str, tmp_path: Path) -> None:
    run, merged, compared = journey(tmp_path, AutoConfig.for_model(kind))
    assert type(merged).__name__ == WHOLE[kind]
    assert compared.equal, compared
    base, found = bytes_of(tmp_path / "base"), bytes_of(tmp_path / "merged")
    assert base.keys() == found.keys()
    others = kept(run)
    assert others
    assert {name for name in others if base[name] != found[name]} == set()
    assert any(base[name] != found[name] for name in base.keys() - others)
    assert (tmp_path / "merged" / "config.json").read_bytes() == (
        tmp_path / "base" / "config.json"
    ).read_bytes()


def test_nothing_but_the_text_part_is_quantized_or_loaded(tmp_path: Path) -> None:
    run, _, _ = journey(tmp_path, AutoConfig.for_model("gemma3"))
    loaded = {name for name, _ in run.adapted.get_base_model().named_parameters()}
    assert not any("vision" in name or "projector" in name for name in loaded)
    stored = tensors_of(run.workspace.quantized_model).keys()
    assert not any("vision" in name or "projector" in name for name in stored)
    assert run.layout.quantized
    assert all(name.startswith("model.layers.") for name in run.layout.quantized)


def test_parts_share_files_and_unknown_tensors_stay(tmp_path: Path) -> None:
    """The tensors of the parts alternate in three files."""
    unknown = {
        "mtp.layers.0.weight": torch.tensor([[1.0, torch.nan], [torch.inf, -0.0]], dtype=torch.float32),
        "steps": torch.arange(5),
    }
    run, merged, compared = journey(
        tmp_path, AutoConfig.for_model("gemma3"), lambda base: rewrite(base, files=3, more=unknown)
    )
    assert compared.equal, compared
    assert type(merged).__name__ == WHOLE["gemma3"]
    base, found = bytes_of(tmp_path / "base"), bytes_of(tmp_path / "merged")
    assert unknown.keys() <= kept(run)
    assert {name for name in kept(run) if base[name] != found[name]} == set()
    assert len(list((tmp_path / "merged").glob("*.safetensors"))) == 3


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace("language_model.model.", "model.language_model.").replace(
            "language_model.lm_head", "lm_head"
        ),
        lambda name: name,
    ],
    ids=["as transformers has them", "as they were published"],
)
def test_every_layout_that_transformers_loads_gives_the_same_text_model(
    rename: Callable[[str], str], tmp_path: Path
) -> None:
    run, _, compared = journey(
        tmp_path, AutoConfig.for_model("gemma3"), lambda base: rewrite(base, rename=rename)
    )
    assert compared.equal, compared
    assert "model.layers.0.self_attn.q_proj" in run.layout.quantized
    assert bytes_of(tmp_path / "base").keys() == bytes_of(tmp_path / "merged").keys()


@pytest.mark.parametrize("tied", [True, False])
def test_the_whole_model_decides_whether_matrices_are_tied(tied: bool, tmp_path: Path) -> None:  # noqa: FBT001 -- a case
    config = AutoConfig.for_model("qwen3_5")
    config.tie_word_embeddings, config.text_config.tie_word_embeddings = tied, not tied
    run, _, compared = journey(tmp_path, config)
    assert compared.equal, compared
    head = run.adapted.get_base_model().get_output_embeddings().weight
    embedding = run.adapted.get_base_model().get_input_embeddings().weight
    assert (head is embedding) is tied


def test_layers_of_a_text_part_may_be_rows_of_one_tensor_under_another_name(tmp_path: Path) -> None:
    """Molmo2's files hold q, k and v in one tensor, gate and up in one, and the embedding in two."""
    config = AutoConfig.for_model("molmo2")
    config.adapter_config.vision_feature_layer = [1, 0]  # the small tower has two layers
    run, merged, compared = journey(tmp_path, config)
    assert compared.equal, compared
    assert run.layout.places["model.layers.0.mlp.up_proj"].tensor == "model.layers.0.mlp.ff_proj.weight"
    base, found = bytes_of(tmp_path / "base"), bytes_of(tmp_path / "merged")
    assert base.keys() == found.keys()
    assert {name for name in kept(run) if base[name] != found[name]} == set()
    assert base[(one := "model.transformer.blocks.1.self_attn.att_proj.weight")] != found[one]
    row = list(range(5, 17))
    with TensorFiles(tmp_path / "merged") as files, torch.no_grad():
        example = Example(row, [IGNORED, *row[1:]], row=1)
        (scores,) = StreamedModel(tmp_path / "merged", files).score(
            [example], [range(1, len(row))], PlainWeights(files)
        )
        wanted = merged(input_ids=torch.tensor([row])).logits[0, :-1]
    assert torch.allclose(scores.logits, wanted, atol=1e-5 * float(wanted.abs().max()))


def test_a_model_whose_text_part_has_no_language_model_is_refused(tmp_path: Path) -> None:
    small_model(AutoConfig.for_model("kosmos-2")).save_pretrained(tmp_path)
    with pytest.raises(StageError, match="choose the family's text model") as caught:
        inspect_base_model(tmp_path)
    assert caught.value.reason is Reason.UNSUPPORTED_MODEL


def test_a_layer_that_the_config_does_not_have_is_refused(tmp_path: Path) -> None:
    def deepen(base: Path) -> None:
        rewrite(base, more={"language_model.model.layers.9.mlp.up_proj.weight": torch.zeros(128, 64)})

    run = SmallRun(tmp_path, LORA)
    run.build(AutoConfig.for_model("gemma3"))
    deepen(tmp_path / "base")
    with pytest.raises(StageError, match=r"found others 1: .*layers\.9") as caught:
        run.prepare()
    assert caught.value.reason is Reason.INVALID_MODEL


def test_the_trial_passes_for_a_whole_model() -> None:
    found = try_model(AutoConfig.for_model("gemma3"))
    assert (found.training, found.merge, found.checkpointing, found.untried) == (None, None, None, None)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gemma3", "qwen3_5"])
def test_a_whole_model_is_trained_merged_and_proven(kind: str, tmp_path: Path) -> None:
    """By the stages themselves, and the answer is that of the whole model."""
    tokenizer = small_tokenizer()
    config = AutoConfig.for_model(kind)
    for part in (config, config.text_config):
        part.eos_token_id, part.pad_token_id, part.bos_token_id = (
            tokenizer.eos_token_id,
            tokenizer.pad_token_id,
            None,
        )
    base = tmp_path / "base"
    small_model(config).to(torch.bfloat16).save_pretrained(base)
    tokenizer.save_pretrained(base)
    (base / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5]}))
    rewrite(base, files=2, more={"vision_tower.unknown": torch.tensor([torch.nan])})
    prepare_by_trainer(tmp_path / "workspace", base)
    run = run_spec(tmp_path / "workspace", tmp_path / "output", maximumSteps=10)
    trained = train(run, NullReporter())
    result = merge(run, NullReporter())
    assert result.verification is not None
    assert result.verification.verdict == "Proven"
    assert result.verification.merged_loss == pytest.approx(trained.evaluation.tuned_loss, abs=0.05)
    merged = tmp_path / "output" / "merged"
    before, after = bytes_of(base), bytes_of(merged)
    assert before.keys() == after.keys()
    towers = [name for name in before if "vision" in name or "visual" in name]
    assert towers
    assert {name for name in towers if before[name] != after[name]} == set()
    assert json.loads((merged / "config.json").read_text()) == json.loads((base / "config.json").read_text())
    assert (merged / "preprocessor_config.json").read_bytes() == (
        base / "preprocessor_config.json"
    ).read_bytes()
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        logits = [
            AutoModelForMultimodalLM.from_pretrained(folder, dtype=torch.float32)(input_ids=ids).logits
            for folder in (base, merged)
        ]
    assert float((logits[0] - logits[1]).abs().max()) > 0
