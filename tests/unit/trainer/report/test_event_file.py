from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.report.curve import training_report
from finetune_trainer.report.event_file import EVENT_FILE, crc32c, event_file, write_event_file
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

HISTORY = [{"step": n, "loss": 3 - n / 9, "learning_rate": 0.1, "grad_norm": 1.5} for n in (1, 200, 70_000)]
REPORT = training_report("job", HISTORY, [(200, 2.5)])


@pytest.fixture(scope="module")
def event_class() -> Any:
    """The message Event with the fields of event.proto and summary.proto that scalars use."""
    file = FileDescriptorProto(name="event.proto", package="t", syntax="proto3")
    for message, fields in {
        "Value": [("tag", 1, 9, ""), ("simple_value", 2, 2, "")],
        "Summary": [("value", 1, 11, ".t.Value")],
        "Event": [
            ("wall_time", 1, 1, ""),
            ("step", 2, 3, ""),
            ("file_version", 3, 9, ""),
            ("summary", 5, 11, ".t.Summary"),
        ],
    }.items():
        described = file.message_type.add(name=message)
        for name, number, kind, type_name in fields:
            label = 3 if name == "value" else 1
            described.field.add(name=name, number=number, type=kind, label=label, type_name=type_name or None)
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName("t.Event"))


def records(content: bytes) -> Iterator[bytes]:
    """Yield the contents of a TFRecord file, whose checksums must be right."""
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        body, rest = content[12 : 12 + length], content[12 + length :]
        for part, stored in ((content[:8], content[8:12]), (body, rest[:4])):
            (masked,) = struct.unpack("<I", stored)
            rotated = (masked - 0xA282EAD8) & 0xFFFFFFFF
            assert (rotated >> 17 | rotated << 15) & 0xFFFFFFFF == crc32c(part)
        yield body
        content = rest[4:]


def test_every_point_is_a_scalar_that_protobuf_reads(event_class: Any) -> None:
    first, *events = [event_class.FromString(each) for each in records(event_file(REPORT))]
    assert first.file_version == "brain.Event:2"
    found = {(each.step, value.tag): value.simple_value for each in events for value in each.summary.value}
    assert len(found) == 10
    assert found[70_000, "train/loss"] == pytest.approx(3 - 70_000 / 9)
    assert found[1, "train/learning_rate"] == pytest.approx(0.1)
    assert found[1, "train/gradient_norm"] == 1.5
    assert found[200, "eval/loss"] == 2.5


def test_the_checksum_is_that_of_rfc_3720() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA


def test_numbers_that_are_not_known_are_left_out_and_equal_reports_give_equal_bytes(event_class: Any) -> None:
    report = training_report("job", [{"step": 1, "loss": 2.0}], [])
    events = [event_class.FromString(each) for each in records(event_file(report))]
    assert [value.tag for each in events for value in each.summary.value] == ["train/loss"]
    assert event_file(report) == event_file(report)


def test_the_file_has_a_name_that_tensorboard_finds(tmp_path: Path) -> None:
    write_event_file(tmp_path, REPORT)
    assert (tmp_path / EVENT_FILE).read_bytes() == event_file(REPORT)
    assert "tfevents" in EVENT_FILE
