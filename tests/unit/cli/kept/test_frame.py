from __future__ import annotations

import io
from pathlib import Path

import pytest
from finetune_cli.kept.frame import FrameError, read_frame
from finetune_trainer.workspace.kept import print_kept

from tests.support.kept_jobs import frame


def test_the_trainers_own_output_is_read(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    content = b"line\n\n\xff{}\nno end"
    (tmp_path / "logs" / "train-0.log").write_bytes(content)
    output = io.BytesIO()
    print_kept(tmp_path, "train", None, output)
    kept = read_frame(b"a line of the runtime\n" + output.getvalue() + b"another one\n")
    assert (kept.content, kept.logs) == (content, ("train-0",))
    missing = io.BytesIO()
    print_kept(tmp_path, "merge", None, missing)
    assert read_frame(missing.getvalue()).content is None


@pytest.mark.parametrize(
    ("output", "found"),
    [
        (b"", "nothing"),
        (b"first\nusage: finetune-trainer COMMAND\n", "usage: finetune-trainer COMMAND"),
        (frame(b"content")[:-4], "4 of 7 bytes"),
        (frame(b"content").replace(b"content", b"changed"), "others were mixed in"),
        (b'["finetune-kept/1"]\n', "finetune-kept/1"),
        (b'{"frame": "finetune-kept/1" broken\n', "broken"),
    ],
)
def test_output_that_is_cut_mixed_or_of_an_older_image_is_an_error(output: bytes, found: str) -> None:
    with pytest.raises(FrameError, match=found):
        read_frame(output)


def test_a_frame_inside_of_a_log_is_content() -> None:
    inner = frame(b"inner")
    assert read_frame(frame(inner)).content == inner
