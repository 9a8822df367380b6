"""Print the share of rendered rows that the masks accept and that are right, over the whole matrix of templates.

Every template of the matrix renders every conversation. A judge that shares no code with the masks decides if a row is
rendered in full and if its labels are right. Templates that rewrite or leave out content are listed separately, because
they may accept only the rows that they write faithfully.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from finetune_trainer.cpu import available_cpus
from finetune_trainer.errors import StageError

from tests.support.chat_templates.acceptance import Acceptance, examine
from tests.support.chat_templates.conversations import conversations
from tests.support.chat_templates.real_tokenizers import RealTokenizers
from tests.support.chat_templates.templates import cases


def _examine(names: list[str]) -> list[tuple[str, Acceptance | str]]:
    """Examine templates that share a vocabulary, so that each process loads it once."""
    found: list[tuple[str, Acceptance | str]] = []
    with tempfile.TemporaryDirectory() as folder:
        tokenizers = RealTokenizers(Path(folder))
        for name in names:
            try:
                found.append((name, examine(tokenizers, name, conversations())))
            except StageError as error:
                found.append((name, f"{error.reason}: {error.message}"))
    return found


def main() -> int:
    """Print the findings; return 1 if an accepted row is wrong or a template is rejected."""
    groups: dict[str, list[str]] = {}
    for name, case in sorted(cases().items()):
        groups.setdefault(case.vocabulary, []).append(name)
    totals: Counter[str] = Counter()
    with ProcessPoolExecutor(available_cpus()) as pool:
        for group in pool.map(_examine, groups.values()):
            for name, found in group:
                _report(name, found, totals)
    faithful = totals["faithful rendered"]
    print(f"templates: {len(cases())}, conversations: {len(conversations())}")
    print(f"rendered rows of templates that write all content: {faithful}")
    print(f"accepted and right: {totals['faithful right']} ({totals['faithful right'] / faithful:.2%})")
    print(
        f"rendered rows of the other templates: {totals['rendered']}, accepted and right: {totals['right']}"
    )
    print(f"wrong: {totals['wrong']}, templates rejected as a whole: {totals['rejected']}")
    return 1 if totals["wrong"] or totals["rejected"] else 0


def _report(name: str, found: Acceptance | str, totals: Counter[str]) -> None:
    if isinstance(found, str):
        totals["rejected"] += 1
        print(f"{name}: {found}")
        return
    prefix = "faithful " if cases()[name].faithful else ""
    wrong = len(found.wrong)
    totals[f"{prefix}rendered"] += found.rendered
    totals[f"{prefix}right"] += found.accepted - wrong
    totals["wrong"] += wrong
    if wrong or found.accepted < found.rendered:
        print(f"{name}: {found.accepted} of {found.rendered} accepted, {wrong} wrong")
        for title, faults in found.wrong.items():
            print(f"  {title}: {faults}")


if __name__ == "__main__":
    sys.exit(main())
