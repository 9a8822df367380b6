from __future__ import annotations

import json

from finetune_cli.compare.document import document
from jsonschema import Draft202012Validator

from tests.support.cli_jobs import NOW, cli_job, failed, succeeded
from tests.support.repository import ROOT

CONTRACT = json.loads((ROOT / "contract" / "cli.schema.json").read_text("utf-8"))
SCHEMA = Draft202012Validator({**CONTRACT, "$ref": "#/$defs/comparison"})


def test_the_document_has_what_differs_and_nothing_else() -> None:
    second = succeeded("support-bot-2")
    second["spec"]["training"] = {"lora": {"rank": 8}}
    second["status"]["plan"]["training"]["microBatchSize"] = 4
    found = document(succeeded(), second, NOW)
    SCHEMA.validate(found)
    assert found["spec"] == [{"path": "training.lora.rank", "first": None, "second": 8}]
    assert found["plan"] == [{"path": "microBatchSize", "first": 2, "second": 4}]
    assert found["dataset"] == []
    assert found["obstacle"] is None
    assert [item["better"] for item in found["measures"]] == [None]
    assert found["times"][0] == {
        "prepareSeconds": 600,
        "trainSeconds": 900,
        "mergeSeconds": 180,
        "gpuHours": 0.25,
    }


def test_jobs_that_never_ran_are_compared_by_their_specs() -> None:
    found = document(failed(), cli_job("new"), NOW)
    SCHEMA.validate(found)
    assert found["obstacle"] == "support-bot has no evaluation"
    assert found["evaluations"] == [None, None]
    assert found["measures"] == []


def test_a_changed_list_is_one_difference() -> None:
    second = succeeded()
    second["spec"]["output"]["artifacts"] = ["Adapter"]
    assert document(succeeded(), second, NOW)["spec"] == [
        {"path": "output.artifacts", "first": None, "second": ["Adapter"]}
    ]
