from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from finetune_trainer.contract.run_spec import Dataset
from finetune_trainer.data.chat_template.template import ChatTemplate
from finetune_trainer.data.dataset.builder import BuiltDataset, DatasetBuilder
from finetune_trainer.data.dataset.ledger import RowLedger
from finetune_trainer.data.dataset.row_source import open_source
from finetune_trainer.data.dataset.tables import stream_examples
from finetune_trainer.data.masking.example import Example
from finetune_trainer.data.masking.masking import Masker
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.telemetry.reporter import NullReporter
from finetune_trainer.workspace.layout import WorkspaceLayout
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.tiny_models import conversation_rows, tiny_tokenizer, write_rows

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(scope="module")
def masker() -> Masker:
    return Masker(ChatTemplate(tiny_tokenizer()), 512, ())


class Killed(BaseException):
    """A substitute for SIGKILL: nothing may catch it."""


class KillAt(NullReporter):
    """Kills the work at its n-th report."""

    def __init__(self, reports: int) -> None:
        super().__init__()
        self._left = reports

    def update(self, activity: str, step: int, total: int | None, **values: Any) -> None:
        self._left -= 1
        if self._left < 0:
            raise Killed
        super().update(activity, step, total, **values)


class Counter(NullReporter):
    """Counts the proven rows."""

    rows = 0

    def update(self, activity: str, step: int, total: int | None, **values: Any) -> None:
        self.rows += activity == "ProvingRows"
        super().update(activity, step, total, **values)


def build(
    root: Path, masker: Masker, training: Path, held_out: Path | None = None, *,
    fraction: float = 0.25, rejected: float = 0.5, progress: NullReporter | None = None, segment_rows: int = 10,
) -> BuiltDataset:  # fmt: skip
    document: dict[str, Any] = {
        "source": {"kind": "File", "path": str(training)},
        "validation": {"fraction": fraction}
        if held_out is None
        else {"source": {"kind": "File", "path": str(held_out)}},
        "reasoning": "Keep",
        "rejectedRows": {"maximumFraction": rejected},
    }
    layout = WorkspaceLayout(root)
    builder = DatasetBuilder(
        Dataset.model_validate(document),
        masker,
        42,
        layout,
        "inputs",
        progress or NullReporter(),
        segment_rows=segment_rows,
    )

    def source(path: Path) -> Any:
        return open_source([path], "Auto", 1 << 30, root)

    try:
        return builder.build(source(training), None if held_out is None else source(held_out))
    finally:
        builder.close()


def tables(root: Path) -> tuple[list[Example], list[Example]]:
    layout = WorkspaceLayout(root)
    return list(stream_examples(layout.training_table)), list(stream_examples(layout.validation_table))


def mixed_rows(count: int) -> list[dict[str, Any]]:
    """Good, repeated and rejected rows in a fixed random order."""
    rows = conversation_rows(count)
    rows += [dict(row) for row in rows[: count // 5]]
    rows += [{"messages": [{"role": "user", "content": f"nobody answers {n}"}]} for n in range(count // 10)]
    random.Random(7).shuffle(rows)  # noqa: S311 -- test data
    return rows


@pytest.mark.slow
@given(kills=st.lists(st.integers(0, 130), max_size=6), segment_rows=st.sampled_from([1, 7, 10, 1000]))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_build_that_is_killed_anywhere_gives_the_same_tables(
    tmp_path_factory: pytest.TempPathFactory, masker: Masker, kills: list[int], segment_rows: int
) -> None:
    root = tmp_path_factory.mktemp("build")
    training = write_rows(root / "rows.jsonl", mixed_rows(100))
    undisturbed = build(root / "a", masker, training, segment_rows=segment_rows)
    for reports in kills:
        try:
            build(root / "b", masker, training, progress=KillAt(reports), segment_rows=segment_rows)
        except Killed:
            continue
    resumed = build(root / "b", masker, training, segment_rows=segment_rows)
    assert resumed.result == undisturbed.result
    assert resumed.reports == undisturbed.reports
    assert tables(root / "a") == tables(root / "b")


def test_a_killed_build_repeats_at_most_one_segment(tmp_path: Path, masker: Masker) -> None:
    training = write_rows(tmp_path / "rows.jsonl", conversation_rows(100))
    with pytest.raises(Killed):
        build(tmp_path / "work", masker, training, progress=KillAt(75), segment_rows=10)
    counter = Counter()
    build(tmp_path / "work", masker, training, progress=counter, segment_rows=10)
    assert counter.rows == 30


def test_segments_of_any_size_give_the_same_digest(tmp_path: Path, masker: Masker) -> None:
    training = write_rows(tmp_path / "rows.jsonl", mixed_rows(60))
    digests = {
        build(tmp_path / str(segment_rows), masker, training, segment_rows=segment_rows).result.digest
        for segment_rows in (1, 8, 71, 72, 500)
    }
    assert len(digests) == 1


def test_a_training_row_that_is_also_held_out_is_counted_and_not_trained_on(
    tmp_path: Path, masker: Masker
) -> None:
    rows = conversation_rows(30)
    training = write_rows(tmp_path / "training.jsonl", [*rows, rows[0]])
    held_out = write_rows(tmp_path / "held_out.jsonl", rows[20:24])
    built = build(tmp_path / "work", masker, training, held_out)
    report = built.reports["training"]
    assert (report.rows, report.kept, report.duplicates, report.held_out_copies) == (31, 26, 1, 4)
    trained, validated = tables(tmp_path / "work")
    assert {example.row for example in trained} == {*range(1, 21), *range(25, 31)}
    assert [example.row for example in validated] == [1, 2, 3, 4]


def test_a_training_dataset_that_is_all_held_out_says_so(tmp_path: Path, masker: Masker) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", conversation_rows(5))
    with pytest.raises(StageError) as caught:
        build(tmp_path / "work", masker, rows, rows)
    assert caught.value.reason is Reason.INVALID_DATASET
    assert (
        "of 5 rows of the training dataset, 5 are left out because they are also in the validation dataset"
        in caught.value.message
    )
    assert "dataset.validation.fraction" in caught.value.message


def test_a_dataset_without_an_accepted_row_fails_even_if_all_may_be_rejected(
    tmp_path: Path, masker: Masker
) -> None:
    rows = [{"messages": row["messages"][:1]} for row in conversation_rows(5)]
    with pytest.raises(StageError) as caught:
        build(tmp_path / "work", masker, write_rows(tmp_path / "rows.jsonl", rows), rejected=1.0)
    assert caught.value.reason is Reason.INVALID_DATASET
    assert (
        "of 5 rows of the dataset, 5 are rejected; correct the rejected rows, or add others. 5 NoAssistantTurn"
        in caught.value.message
    )


def test_held_out_rows_do_not_depend_on_their_order(tmp_path: Path, masker: Masker) -> None:
    rows = conversation_rows(40)
    shuffled = random.Random(3).sample(rows, len(rows))  # noqa: S311 -- test data
    held_out = []
    for name, order in (("a", rows), ("b", shuffled)):
        build(tmp_path / name, masker, write_rows(tmp_path / f"{name}.jsonl", order))
        held_out.append({tuple(example.input_ids) for example in tables(tmp_path / name)[1]})
    assert held_out[0] == held_out[1]
    assert len(held_out[0]) == 10


def test_the_rows_before_the_fault_of_a_file_are_reported(
    tmp_path: Path, masker: Masker, tiny_rows: Callable[[int], bytes]
) -> None:
    """Rows before the end of a cut JSON array are counted, and the job fails with MalformedDataset."""
    path = tmp_path / "rows.json"
    path.write_bytes(b"[\n" + tiny_rows(25).replace(b"\n", b",")[:-1] + b', {"messages": [}')
    with pytest.raises(StageError) as caught:
        build(tmp_path / "work", masker, path)
    assert caught.value.reason is Reason.MALFORMED_DATASET
    ledger = RowLedger(WorkspaceLayout(tmp_path / "work").dataset_parts / "rows.sqlite", "inputs")
    assert ledger.state("training")["report"]["kept"] == 25


@pytest.fixture
def tiny_rows(tmp_path: Path) -> Callable[[int], bytes]:
    return lambda count: write_rows(tmp_path / "plain.jsonl", conversation_rows(count)).read_bytes()
