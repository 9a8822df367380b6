from __future__ import annotations

import json
from decimal import Decimal

import pytest
from finetune_cli.__main__ import main
from finetune_cli.exit_codes import ExitCode
from finetune_cli.jobs.cost import document, gpu_hours, table
from jsonschema import Draft202012Validator

from tests.support.cli_jobs import NOW, cli_job, succeeded, training
from tests.support.kubectl_program import KubectlProgram
from tests.support.repository import ROOT

CONTRACT = json.loads((ROOT / "contract" / "cli.schema.json").read_text("utf-8"))
SCHEMA = Draft202012Validator({**CONTRACT, "$ref": "#/$defs/cost"})


def test_hours_of_all_attempts_are_counted_and_lost_ones_are_named() -> None:
    found = document([succeeded()], NOW, Decimal("2.40"), "EUR")
    SCHEMA.validate(found)
    assert found["jobs"][0]["gpuHours"] == 0.25
    assert found["jobs"][0]["lostGpuHours"] == 0.05
    assert found["jobs"][0]["cost"] == "0.60"


def test_a_running_job_counts_until_now_and_for_each_gpu() -> None:
    job = training()
    job["spec"]["resources"] = {"gpus": 4}
    assert gpu_hours(job, NOW) == pytest.approx(4 / 3, abs=1e-4)


def test_a_job_that_never_trained_costs_nothing() -> None:
    found = document([cli_job()], NOW, Decimal(3), None)
    assert (found["jobs"][0]["gpuHours"], found["jobs"][0]["cost"]) == (0, "0.00")


def test_without_a_price_there_is_no_cost() -> None:
    found = document([succeeded()], NOW, None, None)
    assert found["total"]["cost"] is None
    assert "COST" not in table(found, namespaces=False)


def test_the_table_ends_with_the_total() -> None:
    found = document([succeeded(), succeeded("airports")], NOW, Decimal(10), "EUR")
    assert table(found, namespaces=True) == (
        "NAMESPACE   NAME          PHASE       GPU         GPUS   GPU-HOURS   LOST   COST EUR\n"
        "team-a      support-bot   Succeeded   NVIDIA L4   1      0.25        0.05   2.50\n"
        "team-a      airports      Succeeded   NVIDIA L4   1      0.25        0.05   2.50\n"
        "TOTAL                                                    0.50        0.10   5.00\n"
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
