from __future__ import annotations

from pathlib import Path

from finetune_trainer.workspace.kept_logs import forget_old_logs, newest, read_excerpt, stored_logs


def fill(folder: Path, *names: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text(name)


def test_logs_are_in_the_order_of_stages_and_attempts(tmp_path: Path) -> None:
    fill(
        tmp_path,
        "publish-0.log",
        "merge-0.log",
        "train-10.log",
        "train-2.log",
        "prepare-0.log",
        "probe-0.log",
    )
    found = [(log.step, log.attempt) for log in stored_logs(tmp_path)]
    assert found == [
        ("probe", 0), ("prepare", 0), ("train", 2), ("train", 10), ("merge", 0), ("publish", 0)
    ]  # fmt: skip
    assert [log.stage for log in stored_logs(tmp_path)] == [
        "Prepare",
        "Prepare",
        "Train",
        "Train",
        "Merge",
        "Merge",
    ]


def test_links_folders_and_other_names_are_no_logs(tmp_path: Path) -> None:
    fill(
        tmp_path,
        "train-0.log",
        "train-00.log",
        "train.log",
        "other-1.log",
        ".train-0.log.1.tmp",
        "train-<b>.log",
    )
    (tmp_path / "train-1.log").symlink_to("/etc/hostname")
    (tmp_path / "train-2.log").mkdir()
    assert [log.path.name for log in stored_logs(tmp_path)] == ["train-0.log"]
    assert stored_logs(tmp_path / "missing") == []


def test_only_the_newest_logs_of_each_step_stay(tmp_path: Path) -> None:
    fill(tmp_path, "prepare-0.log", *(f"train-{number}.log" for number in range(30)))
    assert [log.attempt for log in newest(stored_logs(tmp_path), 2)] == [0, 28, 29]
    forget_old_logs(tmp_path, 3)
    assert [log.attempt for log in stored_logs(tmp_path)] == [0, 27, 28, 29]


def test_an_excerpt_has_whole_lines_of_the_beginning_and_the_end(tmp_path: Path) -> None:
    path = tmp_path / "train-0.log"
    path.write_text("".join(f"line {number}\n" for number in range(1000)))
    excerpt = read_excerpt(path, 20, 30)
    assert excerpt.first == "line 0\nline 1\n"
    assert excerpt.last == "line 997\nline 998\nline 999\n"
    assert excerpt.left_out == excerpt.size - len(excerpt.first) - len(excerpt.last)


def test_a_short_log_is_its_own_excerpt(tmp_path: Path) -> None:
    path = tmp_path / "train-0.log"
    path.write_bytes(b"a\xffb\n")
    excerpt = read_excerpt(path, 3, 3)
    assert (excerpt.first, excerpt.last, excerpt.left_out) == ("a\ufffdb\n", "", 0)
