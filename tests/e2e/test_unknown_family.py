"""A job whose model has no formula is sized by its trace: it finishes, or it is refused before its weights are fetched."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from devcluster import product
from devcluster.kubectl import Kubectl
from devcluster.provider import ProvidedCluster

from tests.support.e2e import jobs, quickstart
from tests.support.e2e.hub import REPOSITORY, Hub, hub_server, write_model_of_shape

pytestmark = [pytest.mark.cluster, pytest.mark.full]

HYBRID = "qwen3_next"
"""A family with linear attention and experts."""
# The shape of Mixtral 8x22B, but the vocabulary of the tokenizer beside it.
MIXTURE = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "hidden_size": 6144,
    "intermediate_size": 16384,
    "num_hidden_layers": 56,
    "num_attention_heads": 48,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 49152,
    "max_position_embeddings": 65536,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}
SHARDS = 59
EXPERTS = 56 * 8 * 3 * 6144 * 16384
PREPARE_SECONDS = 240.0


def write_hybrid(folder: Path, tokenizer: Path) -> None:
    """Save a small random model of HYBRID with the tokenizer files of `tokenizer`."""
    import torch  # noqa: PLC0415 -- 10 s, only if a model is made
    from finetune_trainer.model.small_config import small_document  # noqa: PLC0415 -- same
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415 -- same

    members = small_document(AutoConfig.for_model(HYBRID).to_dict(), vocabulary=49152)
    members |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "max_position_embeddings": 512}
    members.pop("model_type")
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(HYBRID, **members))
    model.to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(tokenizer / name, folder / name)


@pytest.fixture(scope="module")
def hub(
    operator: ProvidedCluster, workplace: Kubectl, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Hub]:
    """A hub with a mixture of experts that no GPU here can train; the operator is configured with it."""
    model = tmp_path_factory.mktemp("hub") / "model"
    write_model_of_shape(model, MIXTURE, quickstart.BASE_MODEL, SHARDS)
    with hub_server(workplace, operator.trainer_image, model) as running:
        product.install_chart(operator, {"trainer": {"huggingFaceEndpoint": running.endpoint}})
        yield running
        product.install_chart(operator)


def test_a_model_without_a_formula_is_traced_sized_and_finished(
    operator: ProvidedCluster, room: Kubectl, tmp_path: Path
) -> None:
    write_hybrid(tmp_path / "hybrid", quickstart.BASE_MODEL)
    with product.volume_pod(room, jobs.CLAIM, operator.trainer_image) as pod:
        product.fill_volume(room, pod, tmp_path / "hybrid", "models/hybrid")
    source = {"persistentVolumeClaim": {"claimName": jobs.CLAIM, "path": "models/hybrid"}}
    room.apply(jobs.fine_tune_job("hybrid", model={"source": source}))
    job = product.follow(room, "hybrid", seconds=500)
    assert product.condition(job, "Succeeded")["status"] == "True", job["status"]
    assert '"rank"' in job["status"]["model"]["trace"]
    assert "traceProblem" not in job["status"]["model"]
    plan = job["status"]["plan"]
    assert plan["memory"]["deviceBytes"] <= plan["gpu"]["usableBytes"]
    assert "experts in NF4" in {term["name"] for term in plan["memory"]["terms"]}
    assert job["status"]["artifacts"]


def test_a_mixture_that_fits_nowhere_is_held_before_any_weight_is_fetched(
    cluster: ProvidedCluster, hub: Hub, settled: Kubectl
) -> None:
    job = jobs.fine_tune_job("mixture", model={"source": {"huggingFace": {"repository": REPOSITORY}}})
    found = jobs.held(settled, cluster.kubeconfig, job, seconds=PREPARE_SECONDS)
    message = product.condition(found, "Stalled")["message"]
    named = re.search(r"Its largest part is experts in NF4 \((\d+\.\d) GiB", message)
    assert named, message
    # Half a byte for each weight, and the constants of their blocks.
    assert 0.515 * EXPERTS < float(named[1]) * 2**30 < 0.53 * EXPERTS
    requests = hub.requests()
    assert requests["config.json"] >= 1
    assert not [name for name in requests if name.endswith(".safetensors")]
