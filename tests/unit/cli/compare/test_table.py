from __future__ import annotations

from finetune_cli.compare.document import document
from finetune_cli.compare.table import table

from tests.support.cli_jobs import NOW, cli_job, succeeded


def test_two_jobs_stand_side_by_side_with_the_verdict_below() -> None:
    second = succeeded("support-bot-2")
    second["spec"]["training"] = {"lora": {"rank": 8}}
    second["status"]["evaluation"] |= {
        "tunedLoss": "0.400",
        "difference": "-1.611",
        "interval": ["-1.661", "-1.561"],
    }
    assert table(document(succeeded(), second, NOW)) == (
        "               support-bot     support-bot-2\n"
        "Phase          Succeeded       Succeeded\n"
        "Reason         Completed       Completed\n"
        "Model          hf://org/base   hf://org/base\n"
        "GPU            NVIDIA L4       NVIDIA L4\n"
        "Prepare time   10m00s          10m00s\n"
        "Train time     15m00s          15m00s\n"
        "Merge time     3m00s           3m00s\n"
        "GPU hours      0.25            0.25\n"
        "\n"
        "Spec differs in      support-bot   support-bot-2\n"
        "training.lora.rank   -             8\n"
        "\n"
        "Dataset: no difference\n"
        "\n"
        "Plan: no difference\n"
        "\n"
        "support-bot: Improved, loss 2.011 -> 0.533 (difference -1.478, 95 % interval\n"
        "  -1.528 to -1.428)\n"
        "support-bot-2: Improved, loss 2.011 -> 0.400 (difference -1.611, 95 % interval\n"
        "  -1.661 to -1.561)\n"
        "Loss: 0.533 and 0.4, difference -0.133 (95 % interval -0.2037 to -0.06229):\n"
        "  support-bot-2 is better.\n"
    )


def test_chance_and_obstacles_are_said() -> None:
    printed = " ".join(table(document(succeeded(), succeeded("b"), NOW)).split())
    assert "the difference is not significant" in printed
    printed = " ".join(table(document(succeeded(), cli_job("new"), NOW)).split())
    assert "The results cannot be compared: new has no evaluation." in printed


def test_long_and_hostile_values_stay_in_their_column() -> None:
    second = succeeded("b")
    second["spec"]["model"]["source"] = {"huggingFace": {"repository": "org/\x1b[31m" + "x" * 60}}
    printed = table(document(succeeded(), second, NOW))
    assert "\x1b" not in printed
    assert max(map(len, printed.splitlines())) <= 100
