from __future__ import annotations

import json
from decimal import Decimal

import pytest
from finetune_cli.__main__ import main
from finetune_cli.exit_codes import ExitCode
from finetune_cli.jobs.cost import document, gpu_hours, table
from jsonschema import Draft202012Validator

from tests.support.cli_jobs import cli_job, succeeded, training
from tests.support.kubectl_program import KubectlProgram
from tests.support.repository import ROOT

CONTRACT = json.loads((ROOT / "contract" / "cli.schema.json").read_text("utf-8"))
SCHEMA = Draft202012Validator({**CONTRACT, "$ref": "#/$defs/cost"})


def test_hours_and_cost_are_those_that_the_operator_measured() -> None:
    found = document([succeeded()], None, None)
    SCHEMA.validate(found)
    job = found["jobs"][0]
    assert (job["gpuHours"], job["lostGpuHours"], job["estimatedGpuHours"]) == (0.25, 0.05, 0.21)
    assert (job["cost"], job["currency"]) == ("0.60", "EUR")


def test_a_given_price_replaces_that_of_the_chart() -> None:
    found = document([succeeded()], Decimal(10), "USD")
    SCHEMA.validate(found)
    assert (found["jobs"][0]["cost"], found["jobs"][0]["currency"]) == ("2.50", "USD")


def test_amounts_in_different_currencies_are_not_added() -> None:
    dollars = succeeded("other")
    dollars["status"]["usage"]["cost"] = {"amount": "1.00", "currency": "USD"}
    found = document([succeeded(), succeeded("same"), dollars], None, None)
    assert found["total"]["costs"] == [
        {"cost": "1.20", "currency": "EUR"},
        {"cost": "1.00", "currency": "USD"},
    ]
    assert "1.20 EUR + 1.00 USD" in table(found, namespaces=False)


def test_a_job_that_never_trained_used_nothing() -> None:
    found = document([cli_job(), training()], Decimal(3), None)
    SCHEMA.validate(found)
    assert [(job["gpuHours"], job["cost"]) for job in found["jobs"]] == [(0, "0.00"), (0, "0.00")]
    assert gpu_hours({"metadata": {}, "spec": {}}) == 0


def test_without_a_price_there_is_no_cost() -> None:
    job = succeeded()
    del job["status"]["usage"]["cost"]
    found = document([job], None, None)
    assert found["jobs"][0]["cost"] is None
    assert found["total"]["costs"] == []


def test_the_table_ends_with_the_total() -> None:
    found = document([succeeded(), cli_job("airports", phase="Pending")], None, None)
    assert table(found, namespaces=True) == (
        "NAMESPACE   NAME          PHASE       GPU         GPUS   ESTIMATE   GPU-HOURS   LOST   COST\n"
        "team-a      support-bot   Succeeded   NVIDIA L4   1      0.21       0.25        0.05   0.60 EUR\n"
        "team-a      airports      Pending     -           1      -          0.00        0.00   -\n"
        "TOTAL                                                               0.25        0.05   0.60 EUR\n"
    )


def test_jobs_are_chosen_by_name_or_by_selector(
    cluster: KubectlProgram, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.put(succeeded())
    assert main(["cost", "support-bot", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["jobs"][0]["name"] == "support-bot"
    assert main(["cost", "support-bot", "-A"]) == ExitCode.USAGE


@pytest.mark.parametrize("price", ["-1", "cheap", "nan", "inf"])
def test_a_price_is_a_number_of_at_least_zero(price: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", "--price", price]) == ExitCode.USAGE
    assert "must be a number of at least 0" in capsys.readouterr().err


def test_a_currency_needs_a_price() -> None:
    assert main(["cost", "--currency", "EUR"]) == ExitCode.USAGE
