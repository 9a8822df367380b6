"""For every source, the model's config is reported before any weight is fetched, and stays in the progress."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.proof.small_run import small_model
from finetune_trainer.stages.prepare.stage import prepare
from finetune_trainer.telemetry.reporter import NullReporter, Reporter
from transformers import AutoConfig

from tests.support.repository import ROOT
from tests.support.servers.model_hub import REPOSITORY, ModelHub, serving
from tests.support.workspaces import small_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from finetune_trainer.contract.run_spec import RunSpec

SCHEMA = json.loads((ROOT / "contract" / "progress.schema.json").read_text())


class Watching(Reporter):
    """Records for each activity if the config is reported, and the number of earlier weight requests."""

    def __init__(self, hub: ModelHub) -> None:
        super().__init__(NullReporter().identity)
        self.hub = hub
        self.requests_when_reported: int | None = None
        self.activities: list[tuple[str, bool]] = []

    def report_config(self, config: dict[str, Any]) -> None:
        super().report_config(config)
        self.requests_when_reported = self.hub.weight_requests

    def update(self, activity: str, step: int, total: int | None, **numbers: Any) -> None:
        super().update(activity, step, total, **numbers)
        self.activities.append((activity, "config" in self.document()))


@pytest.fixture
def watching(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watching]:
    hub = ModelHub(tiny_model)
    reporter = Watching(hub)
    with serving(hub) as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        yield reporter
    reporter.close()


def hub_model(document: dict[str, Any]) -> dict[str, Any]:
    source = {"kind": "HuggingFace", "repository": REPOSITORY, "revision": "main"}
    return {**document["model"], "source": source}


def test_a_hub_models_config_is_reported_before_rows_and_weights(
    make_run: Callable[..., RunSpec], run_document: dict[str, Any], watching: Watching
) -> None:
    run = make_run(model=hub_model(run_document))
    result = prepare(run, watching).document()
    assert watching.requests_when_reported == 0
    assert watching.hub.weight_requests > 0
    assert [name for name, reported in watching.activities if not reported] == []
    config = json.loads((watching.hub.folder / "config.json").read_text())
    reported = watching.document()["config"]
    assert {name: config[name] for name in reported} == reported
    assert {"model_type", "hidden_size", "num_hidden_layers", "vocab_size"} <= reported.keys()
    assert result["prepare"]["model"]["config"] == reported
    marker = json.loads((run.workspace.path / "markers" / "prepare.json").read_text())
    assert marker["result"]["model"]["config"] == reported


def test_a_later_attempt_and_a_cache_hit_report_the_config_again(
    make_run: Callable[..., RunSpec], run_document: dict[str, Any], watching: Watching, tmp_path: Path
) -> None:
    cache = {"path": str(tmp_path / "cache")}
    first = prepare(make_run(model=hub_model(run_document), modelCache=cache), watching).document()
    fetched = watching.hub.weight_requests
    other = make_run(
        model=hub_model(run_document), modelCache=cache, workspace={"path": str(tmp_path / "other")}
    )
    for _ in range(2):
        again = Watching(watching.hub)
        assert prepare(other, again).document()["prepare"]["model"] == first["prepare"]["model"]
        assert again.document()["config"] == first["prepare"]["model"]["config"]
        again.close()
    assert watching.hub.weight_requests == fetched


def test_a_folders_config_is_reported_before_the_rows_are_read(
    make_run: Callable[..., RunSpec], watching: Watching
) -> None:
    prepare(make_run(), watching)
    assert watching.activities
    assert all(reported for _, reported in watching.activities)


@pytest.mark.parametrize(
    ("kind", "training", "said"),
    [
        ("llama", {"routerAuxLossCoefficient": 0.01}, "remove the field"),
        ("gpt2", {"variant": "DoRA"}, "choose Standard or RankStabilized"),
        ("gpt_oss", {"variant": "DoRA"}, "choose Standard or RankStabilized"),
    ],
)
def test_a_setting_that_a_model_cannot_have_is_refused_before_its_weights(
    kind: str,
    training: dict[str, Any],
    said: str,
    make_run: Callable[..., RunSpec],
    run_document: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small_model(AutoConfig.for_model(kind)).save_pretrained(tmp_path / "base")
    small_tokenizer().save_pretrained(tmp_path / "base")
    hub = ModelHub(tmp_path / "base")
    variant = {name: training[name] for name in training if name == "variant"}
    own = {**run_document["training"], **{name: training[name] for name in training.keys() - variant.keys()}}
    own["lora"] = {**own["lora"], **variant}
    with serving(hub) as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        run = make_run(model=hub_model(run_document), training=own)
        with pytest.raises(StageError, match=said) as caught:
            prepare(run, NullReporter())
    assert caught.value.reason is Reason.UNSUPPORTED_MODEL
    assert hub.weight_requests == 0
