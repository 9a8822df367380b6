"""The images as users build them."""

from __future__ import annotations

import subprocess

import pytest

from tests.support.repository import ROOT


@pytest.mark.docker
@pytest.mark.parametrize(
    ("dockerfile", "module"),
    [("operator/Dockerfile", "finetune_operator"), ("trainer_image/Dockerfile", "finetune_trainer")],
)
def test_the_image_builds_and_its_program_starts_as_an_unprivileged_user(
    dockerfile: str, module: str
) -> None:
    tag = f"finetune-test/{module}:test"
    subprocess.run(["docker", "build", "--tag", tag, "--file", dockerfile, "."], check=True, cwd=ROOT)
    command = ["docker", "run", "--rm", "--entrypoint", "python", tag, "-c"]
    code = f"import os, {module}; assert os.getuid() == 65532; print('started')"
    answer = subprocess.run([*command, code], check=True, capture_output=True, text=True)
    assert answer.stdout.strip() == "started"
