"""Tells a file that holds no rows by its first bytes, and says what helps. Its name plays no part."""

from __future__ import annotations

import bz2
import lzma
import re
from typing import Protocol

from finetune_trainer.data.rows.archives import is_tar, zip_kind
from finetune_trainer.data.rows.kind import Kind

_INSIDE = 1 << 16
_LZMA_MEMORY = 128 << 20
_LOOKED_AT = 4096
# Bytes that text has no use for. Tab, line feed, form feed, carriage return and escape occur in it.
_CONTROLS = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f\x7f]")

# The beginnings of gzip and zstd, which are read. Below one of them, they are a mistake.
COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd")

_ARCHIVE = "unpack it, and give the file inside that holds the rows"
_COMPRESS = "unpack it, or compress the rows with gzip or zstd"
_ENCRYPTED = "decrypt it before the upload"
_MEDIA = "only text can be learned: give a file with rows of text"
_OFFICE = "save the table as CSV in UTF-8, or write it as JSON Lines"
_PARQUET = "write the table as Parquet or as JSON Lines"
_PICKLE = "load it where it was written, and write the rows as JSON Lines"
_PROSE = "write its contents as questions and answers, one JSON object per line"
_ROWS = "give the file with the rows"
_WEIGHTS = "give the file with the rows; a base model belongs into `model.source`"
_POINTER = "fetch the content with `{}`, and upload that"

# Patterns of files that hold bytes which text does not.
_BINARY = (
    (rb"PARE", "an encrypted Parquet file", "write it without encryption"),
    (rb"ARROW1|FEA1", "an Arrow file (Feather)", _PARQUET),
    (rb"\xff{4}.{3}\x00", "an Arrow file (a stream, as `save_to_disk` writes it)", f"{_PARQUET} with `to_parquet` or `to_json`"),
    (rb"ORC", "an ORC file", _PARQUET),
    (rb"Obj\x01", "an Avro file", _PARQUET),
    (rb"\x89HDF\r\n", "an HDF5 file", _PARQUET),
    (rb"SQLite format 3", "an SQLite database", "export the table as CSV or as JSON Lines"),
    (rb".{8}DUCK", "a DuckDB database", "export the table as Parquet or as JSON Lines"),
    (rb"RDX[23]\n|X\n\x00{3}", "a data file of R", _OFFICE),
    (rb"MATLAB 5|\$FL[23]|<stata_dta>", "a data file of a statistics program", _OFFICE),
    (rb"\x93NUMPY", "a NumPy array (npy)", _PICKLE),
    (rb"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19", "a PyTorch file (a Python pickle)", _PICKLE),
    (rb"\x80[\x02-\x05]|[\]}]q\x00", "a Python pickle", _PICKLE),
    (rb"GGUF|[lf]mgg|tjgg", "a GGUF model", _WEIGHTS),
    (rb".{4}\x00{4}\{", "a safetensors model", _WEIGHTS),
    (rb".{4}\x00{4}.{4}\n", "a TFRecord file", "write the rows as JSON Lines"),
    (rb"7z\xbc\xaf", "a 7z archive", _ARCHIVE),
    (rb"Rar!\x1a\x07", "a RAR archive", _ARCHIVE),
    (rb"MSCF\x00|xar!|hsqs", "an archive", _ARCHIVE),
    (rb"!<arch>\n", "a Debian package or another ar archive", _ARCHIVE),
    (rb"0707[01]|\xc7\x71", "a cpio archive", _ARCHIVE),
    (rb"\x04\x22\x4d\x18|\x02\x21\x4c\x18", "an lz4 file", _COMPRESS),
    (rb"\x1f[\x9d\xa0]", "a file of `compress` (Z)", _COMPRESS),
    (rb"\x89LZO", "an lzop file", _COMPRESS),
    (rb"LZIP", "an lzip file", _COMPRESS),
    (rb"\xff\x06\x00\x00sNaPpY", "a snappy file", _COMPRESS),
    (rb"\x5d\x00\x00.[\x00-\x08]", "an LZMA file", _COMPRESS),
    (rb"\x1f\x8b|\x28\xb5\x2f\xfd", "a file compressed twice", "unpack it once"),
    (rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office file, such as xls or doc", _OFFICE),
    (rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF.{4}WEBP|II\*\x00|MM\x00\*|BM.{4}\x00{4}", "an image", _MEDIA),
    (rb".{4}ftyp|\x1aE\xdf\xa3|RIFF.{4}AVI", "a video", _MEDIA),
    (rb"ID3|fLaC|OggS|RIFF.{4}WAVE|\xff[\xfb\xf3\xf2]", "a sound file", _MEDIA),
    (rb"\x7fELF|MZ|\xcf\xfa\xed\xfe|\xca\xfe\xba\xbe|\x00asm", "a program", _ROWS),
    (rb"PACK\x00|DIRC\x00", "a file of git's own store", _ROWS),
    (rb"\x85[\x01\x02]|\x8c\x0d|Salted__|age-encryption\.org", "an encrypted file", _ENCRYPTED),
)  # fmt: skip
# Patterns of files that may hold text alone.
_TEXT = (
    (rb"\((?:lp|dp)\d+\r?\n|c(?:copy_reg|__builtin__|builtins)\r?\n", "a Python pickle", _PICKLE),
    (rb"(?:\xef\xbb\xbf)?\s*%PDF-\d", "a PDF", _PROSE),
    (rb"%!PS", "a PostScript document", _PROSE),
    (rb"\{\\rtf", "an RTF document", _PROSE),
    (rb"-----BEGIN PGP MESSAGE|\$ANSIBLE_VAULT", "an encrypted file", _ENCRYPTED),
    (rb"-----BEGIN [A-Z ]*(?:KEY|CERTIFICATE)", "a key or a certificate", _ROWS),
    (rb"\x1e\s*\{", "a JSON text sequence with record separators", "write one JSON object per line, without separators"),
    (rb"version https://(?:git-lfs|hawser)\.", "a Git LFS pointer instead of the file itself", _POINTER.format("git lfs pull")),
    (rb"# xet version", "a Xet pointer instead of the file itself", "download the content, and upload that"),
    (rb"[./]*(?:\.git/)?annex/objects/", "a git-annex pointer instead of the file itself", _POINTER.format("git annex get")),
    (rb"(?:\w+: \w+\r?\n)?outs:\r?\n- md5:", "a DVC pointer instead of the file itself", _POINTER.format("dvc pull")),
)  # fmt: skip
_KINDS = {
    binary: tuple((re.compile(pattern, re.DOTALL), Kind(what, remedy)) for pattern, what, remedy in table)
    for binary, table in ((True, _BINARY), (False, _TEXT))
}


class _Decompressor(Protocol):
    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        """Return at most `max_length` decompressed bytes."""


def file_kind(head: bytes) -> Kind | None:
    """Return what a file with these first bytes is; None if it may be text or Parquet."""
    if re.match(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)", head):
        return _packed("a bzip2 file", head, bz2.BZ2Decompressor())
    if head.startswith(b"\xfd7zXZ\x00"):
        return _packed("an xz file", head, lzma.LZMADecompressor(memlimit=_LZMA_MEMORY))
    return _unpacked_kind(head)


def unknown_binary(head: bytes) -> Kind | None:
    """Return what bytes of no known kind are if text has no use for some of them, else None."""
    if head and not head.strip(b"\x00"):
        return Kind("nothing but zero bytes", "upload the file again")
    control = _CONTROLS.search(head)
    if control is None:
        return None
    found = f"binary data (byte {control.start() + 1} is {head[control.start()]:#04x})"
    return Kind(found, _ROWS)


def _unpacked_kind(head: bytes) -> Kind | None:
    if head.startswith(b"PAR1"):
        return None
    archive = zip_kind(head)
    if archive is not None:
        return archive
    if is_tar(head):
        return Kind("a tar archive", _ARCHIVE)
    control = _CONTROLS.search(head[:_LOOKED_AT])
    for binary in (True, False) if control else (False,):
        for pattern, kind in _KINDS[binary]:
            if pattern.match(head):
                return kind
    return None


def _packed(what: str, head: bytes, decompressor: _Decompressor) -> Kind:
    """Return the kind of a file in a compression that is not read; the remedy is that of its content."""
    try:
        inside = _unpacked_kind(decompressor.decompress(head, _INSIDE))
    except (OSError, EOFError, ValueError, lzma.LZMAError):
        inside = None
    if inside is None:
        return Kind(what, _COMPRESS)
    return Kind(f"{what} that holds {inside.what}", inside.remedy)
