"""The course of a training as an event file for TensorBoard.

An event file is a TFRecord file of `Event` messages: a record is its length, its bytes, and a masked CRC-32C of both. The
few fields that scalars need are written here, because the packages that write them bring a web server or its protocols.
Sources: tensorflow/core/lib/io/record_writer.h, tensorflow/core/util/event.proto, tensorflow/core/framework/summary.proto.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import TYPE_CHECKING, Any

from finetune_trainer.workspace.layout import write_bytes_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

EVENT_FILE = "events.out.tfevents.0.training"
"""TensorBoard looks for `tfevents` in the name. Its own writers add the time and the host, which would differ in each run."""
_TAGS = {"loss": "train/loss", "learningRate": "train/learning_rate", "gradientNorm": "train/gradient_norm"}
_HELD_OUT = "eval/loss"
_CASTAGNOLI = 0x82F63B78
_MASK = 0xA282EAD8


def write_event_file(folder: Path, report: Mapping[str, Any]) -> None:
    """Write the document of `training_report` for TensorBoard into `folder`. Raises OSError."""
    write_bytes_atomically(folder / EVENT_FILE, event_file(report))


def event_file(report: Mapping[str, Any]) -> bytes:
    """Return the event file of the document of `training_report`; equal documents give equal bytes.

    No event has a time: the document has none, and TensorBoard draws by step.
    """
    # The first event has the fields wall_time and file_version.
    events = [_double(1, 0.0) + _bytes(3, b"brain.Event:2")]
    events += [_scalar(step, tag, value) for step, tag, value in _scalars(report)]
    return b"".join(_record(event) for event in events)


def _scalars(report: Mapping[str, Any]) -> Iterator[tuple[int, str, float]]:
    for point in report["points"]:
        for member, tag in _TAGS.items():
            if point.get(member) is not None:
                yield int(point["step"]), tag, float(point[member])
    for point in report["heldOut"]:
        yield int(point["step"]), _HELD_OUT, float(point["loss"])


def _scalar(step: int, tag: str, value: float) -> bytes:
    """An Event with step = 2 and summary = 5, which has value = 1 with tag = 1 and simple_value = 2, a float."""
    summary_value = _bytes(1, tag.encode()) + b"\x15" + struct.pack("<f", value)
    return _double(1, 0.0) + b"\x10" + _varint(step) + _bytes(5, _bytes(1, summary_value))


def _double(field: int, value: float) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<d", value)


def _bytes(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _record(content: bytes) -> bytes:
    length = struct.pack("<Q", len(content))
    return length + struct.pack("<I", _masked(length)) + content + struct.pack("<I", _masked(content))


def _masked(content: bytes) -> int:
    crc = crc32c(content)
    return ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF


def crc32c(content: bytes) -> int:
    """Return the CRC-32C (Castagnoli) of RFC 3720, which zlib does not have."""
    table, crc = _table(), 0xFFFFFFFF
    for byte in content:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


@cache
def _table() -> tuple[int, ...]:
    found = []
    for number in range(256):
        crc = number
        for _ in range(8):
            crc = crc >> 1 ^ (_CASTAGNOLI if crc & 1 else 0)
        found.append(crc)
    return tuple(found)
