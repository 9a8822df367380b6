from __future__ import annotations

from pathlib import Path

import pytest
from finetune_trainer.data.rows.reader import Row, read_rows
from finetune_trainer.errors import Reason, StageError

from tests.support.containers import COMPRESSIONS, CONTAINERS
from tests.support.row_files import conversations, fault, read


@pytest.mark.parametrize("compression", [name for name in COMPRESSIONS if name != "plain"])
def test_broken_compressed_data_is_malformed_after_the_rows_before_it(
    tmp_path: Path, compression: str
) -> None:
    data = COMPRESSIONS[compression](CONTAINERS["lines"](conversations(2000)))
    for broken in (data[:-1], data[: len(data) // 2], data[:30], data + b"more"):
        path = tmp_path / "dataset"
        path.write_bytes(broken)
        rows = read_rows([path])
        seen: list[Row] = []
        with pytest.raises(StageError) as caught:
            seen.extend(rows)
        assert caught.value.reason is Reason.MALFORMED_DATASET
        assert "at byte" in caught.value.message
        assert all(isinstance(row.value, dict) for row in seen)


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@pytest.mark.parametrize("container", ["lines", "array", "csv", "parquet"])
def test_data_that_unpacks_to_more_than_the_limit_is_too_large(
    tmp_path: Path, container: str, compression: str
) -> None:
    plain = CONTAINERS[container](conversations(500))
    packed = COMPRESSIONS[compression](plain)
    assert len(read(tmp_path, packed, maximum_bytes=len(plain))) == 500
    assert fault(tmp_path, packed, maximum_bytes=len(plain) - 1).reason is Reason.DATASET_TOO_LARGE
