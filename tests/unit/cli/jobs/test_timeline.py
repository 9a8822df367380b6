from __future__ import annotations

from finetune_cli.jobs.timeline import stage_seconds, timeline

from tests.support.cli_jobs import NOW, attempt, cli_job, failed, succeeded, training


def test_the_running_attempt_comes_last_and_counts_until_now() -> None:
    found = timeline(training())
    assert [(item.stage, item.outcome) for item in found] == [("Prepare", "Succeeded"), ("Train", None)]
    assert found[-1].seconds(NOW) == 20 * 60


def test_the_time_of_a_stage_is_that_of_all_its_attempts() -> None:
    assert stage_seconds(succeeded(), "Train", NOW) == 15 * 60
    assert stage_seconds(training(), "Merge", NOW) is None


def test_an_ended_job_has_no_running_attempt() -> None:
    job = failed()
    job["status"]["stage"]["attempt"] = 1
    assert [item.number for item in timeline(job)] == [0]


def test_a_job_that_waits_for_its_next_attempt_does_not_run() -> None:
    job = training()
    job["status"]["stage"]["retryTime"] = "2026-11-29T10:40:00Z"
    assert [item.stage for item in timeline(job)] == ["Prepare"]


def test_a_clock_that_ran_backwards_gives_no_negative_time() -> None:
    job = cli_job(attempts=[attempt("Train", "10:20", "10:10")])
    assert stage_seconds(job, "Train", NOW) == 0
