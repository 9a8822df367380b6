"""The check of the locked dependencies finds each fault that a lock can have."""

from __future__ import annotations

import pytest

from scripts.lint.lock import faults

LOCK = """alpha==1.2 \\
    --hash=sha256:00
    # via finetune
beta-gamma==3.0 ; python_full_version < '3.12' \\
    --hash=sha256:11
beta-gamma==3.1 ; python_full_version >= '3.12' \\
    --hash=sha256:22
"""


def test_a_complete_lock_has_no_fault() -> None:
    assert list(faults("dev", LOCK, ["alpha>=1", "Beta_Gamma>=3"])) == []


@pytest.mark.parametrize(
    ("text", "wanted", "fault"),
    [
        (LOCK, ["delta>=1"], "must lock a version that fits delta>=1, found none"),
        (LOCK, ["alpha>=2"], "must lock a version that fits alpha>=2, found 1.2"),
        (LOCK, ["beta-gamma>=3.1"], "must lock a version that fits beta-gamma>=3.1, found 3.0, 3.1"),
        (LOCK.replace("    --hash=sha256:11\n", ""), [], "must hold hashes of beta-gamma==3.0, found none"),
        ("--index-url https://registry.invalid/simple\n" + LOCK, [], "must name no address, found one"),
        (LOCK + "epsilon @ file:///wheels/epsilon.whl\n", [], "must name no address, found one"),
    ],
)
def test_a_fault_is_named(text: str, wanted: list[str], fault: str) -> None:
    assert list(faults("dev", text, wanted)) == [f"requirements/dev.txt {fault}"]
