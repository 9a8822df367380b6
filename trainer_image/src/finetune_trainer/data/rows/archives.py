"""Tells archives from other bytes: zip with everything that is built on it, and tar without a magic."""

from __future__ import annotations

import re
import tarfile

from finetune_trainer.data.rows.kind import Kind

_NAMES_SHOWN = 3
_NAME_LENGTH = 60
_ZIP = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08PK")
_LOCAL_HEADER = re.compile(rb"PK\x03\x04(?s:.{22})(?P<length>..)..", re.DOTALL)
_BLOCK = 512


def zip_kind(head: bytes) -> Kind | None:
    """Return what a zip archive holds, by the names in it; None for other bytes."""
    if not head.startswith(_ZIP):
        return None
    names = _entries(head)
    for pattern, kind in _ON_ZIP:
        if any(pattern.search(name) for name in names):
            return kind
    if b"application/vnd.oasis.opendocument" in head[:200]:
        return Kind("an OpenDocument file, such as ods", _SPREADSHEET)
    if not names:
        return Kind("an empty zip archive", "give the file with the rows")
    shown = ", ".join(repr(name[:_NAME_LENGTH]) for name in names[:_NAMES_SHOWN])
    more = ", ..." if len(names) > _NAMES_SHOWN else ""
    return Kind(f"a zip archive of {shown}{more}", "unpack it, and give the file inside that holds the rows")


def is_tar(head: bytes) -> bool:
    """Return True for a tar archive: its first header block has the right checksum, whatever its dialect."""
    if len(head) < _BLOCK:
        return False
    try:
        tarfile.TarInfo.frombuf(head[:_BLOCK], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _entries(head: bytes) -> list[str]:
    """Return the names of the entries whose headers lie in these bytes."""
    names = []
    for header in _LOCAL_HEADER.finditer(head):
        length = int.from_bytes(header["length"], "little")
        names.append(head[header.end() : header.end() + length].decode("utf-8", "replace"))
    return names


_PICKLE = "load it where it was written, and write the rows as JSON Lines"
_PROSE = "write its contents as questions and answers, one JSON object per line"
_SPREADSHEET = "save the table as CSV in UTF-8, or write it as JSON Lines"
_ON_ZIP = tuple(
    (re.compile(pattern), Kind(what, remedy))
    for pattern, what, remedy in (
        (r"^xl/", "an Excel workbook (xlsx)", _SPREADSHEET),
        (r"^word/", "a Word document (docx)", _PROSE),
        (r"^ppt/", "a PowerPoint file (pptx)", _PROSE),
        (r"^\[Content_Types\]\.xml$", "an Office document, such as xlsx", _SPREADSHEET),
        (r"^Index/.*\.iwa$", "a Numbers or Pages document", _SPREADSHEET),
        (r"^META-INF/container\.xml$", "an e-book (epub)", _PROSE),
        (r"^META-INF/MANIFEST\.MF$", "a Java archive", "give the file with the rows"),
        (r"(^|/)data\.pkl$", "a PyTorch file (a Python pickle in a zip archive)", _PICKLE),
        (r"\.npy$", "a NumPy archive (npz)", _PICKLE),
    )
)
