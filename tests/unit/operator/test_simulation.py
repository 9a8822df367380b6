"""Whole operators on virtual time against models of the cluster. A failure prints the trace of its seed.

`python -m tests.support.simulation --seed N` repeats the life of a seed, and `--seeds N` lives many.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest
from finetune_operator.api.stages import WORK_STAGES

from tests.support.repository import ROOT
from tests.support.simulation.faults import FAULTS
from tests.support.simulation.life import Outcome, live
from tests.support.simulation.mutants import FAULTS as FAULTS_OF_MUTANTS
from tests.support.simulation.mutants import MUTANTS
from tests.support.simulation.plan import draw_plan


def require_no_violation(outcome: Outcome) -> None:
    """Fail with the trace of a life that has shown a violation."""
    if outcome.violations:
        pytest.fail(outcome.report(), pytrace=False)


def test_an_undisturbed_job_runs_each_stage_once_and_succeeds() -> None:
    plan = draw_plan(0, faults=0)
    outcome = live(plan)
    require_no_violation(outcome)
    assert outcome.phases == Counter({"Succeeded": len(plan.jobs)})
    stages = [words[2] for _, kind, *words in outcome.trace if kind == "run"]
    assert Counter(stages) == Counter({stage.value: len(plan.jobs) for stage in WORK_STAGES})


@pytest.mark.parametrize("kind", sorted(FAULTS))
def test_jobs_survive_each_kind_of_fault(kind: str) -> None:
    hits = 0
    for seed in range(5):
        outcome = live(draw_plan(seed, [kind], faults=2))
        require_no_violation(outcome)
        hits += outcome.hits[kind]
        if hits:
            return
    pytest.fail(f"five lives must be hit by a fault of kind {kind!r}, found none")


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_jobs_survive_any_mixture_of_faults(first: int) -> None:
    for seed in range(first, first + 20):
        require_no_violation(live(draw_plan(seed)))


@pytest.mark.full
@pytest.mark.parametrize("first", range(10000, 11000, 50))
def test_jobs_survive_many_faults_at_once(first: int) -> None:
    for seed in range(first, first + 50):
        require_no_violation(live(draw_plan(seed, faults=6)))


@pytest.mark.parametrize("name", MUTANTS)
def test_the_simulation_finds_a_mutation_of_the_operator(name: str) -> None:
    mutant = MUTANTS[name]
    for seed in mutant.seeds:
        with mutant.applied():
            if live(draw_plan(seed, mutant.kinds, faults=FAULTS_OF_MUTANTS)).violations:
                return
    pytest.fail(f"one of the seeds {mutant.seeds} must find that {name}; look for others and replace them")


def test_a_seed_gives_the_same_life_in_every_process() -> None:
    command = [sys.executable, "-m", "tests.support.simulation", "--seed", "7"]
    lives = [
        subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": salt}, capture_output=True, check=True
        ).stdout
        for salt in ("1", "2")
    ]
    assert lives[0] == lives[1]
