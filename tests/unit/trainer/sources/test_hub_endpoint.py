"""Which hub a run uses, and what a job may name."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.hub_endpoint import HubEndpoint, hub_endpoint
from finetune_trainer.sources.hub_model import HubModel
from finetune_trainer.sources.network import Network

from tests.support.servers.loopback import Hub, http_server


def test_the_jobs_hub_precedes_the_administrators_and_that_the_public_one() -> None:
    assert hub_endpoint({}) == HubEndpoint("https://huggingface.co")
    assert hub_endpoint({"HF_ENDPOINT": ""}) == HubEndpoint("https://huggingface.co")
    named = {"HF_ENDPOINT": "https://hub.example/"}
    assert hub_endpoint(named) == HubEndpoint("https://hub.example")
    own = {**named, "FINETUNE_JOB_HUB": "https://own.example/hf/"}
    assert hub_endpoint(own) == HubEndpoint("https://own.example/hf", of_job=True)


@pytest.mark.parametrize("allowed", [False, True])
def test_a_hub_of_the_job_must_have_an_allowed_address(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, allowed: bool
) -> None:
    hub = Hub.of_folder(tiny_model)
    with http_server(hub) as address:
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setenv("FINETUNE_JOB_HUB", address)
        network = Network(allow_private=allowed)
        if allowed:
            model = HubModel("org/model", "main", None, tmp_path, network=network)
            # A job could let its hub say any commit, and other jobs of the namespace share the model cache.
            assert model.identity()["endpoint"] == address
            return
        with pytest.raises(StageError) as caught:
            HubModel("org/model", "main", None, tmp_path, network=network)
    assert caught.value.reason is Reason.MODEL_ADDRESS_FORBIDDEN


def test_a_hub_of_the_administrator_is_no_part_of_the_identity(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with http_server(Hub.of_folder(tiny_model)) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        assert "endpoint" not in HubModel("org/model", "main", None, tmp_path).identity()


def test_a_text_that_is_no_url_names_the_setting_to_correct(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_JOB_HUB", "ftp://hub.example")
    with pytest.raises(StageError, match=r"correct network\.huggingFaceEndpoint"):
        HubModel("org/model", "main", None, tmp_path)
