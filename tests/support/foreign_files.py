"""Files that people give as datasets by mistake, written by the programs that write such files where Python has them."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import lzma
import pickle
import sqlite3
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.orc
import safetensors.numpy

from tests.support.containers import lines

ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"question {n}"},
            {"role": "assistant", "content": "caf\u00e9"},
        ]
    }
    for n in range(12)
]
JSON_LINES = lines(ROWS)
PAIRS = [{"prompt": f"question {n}", "completion": "yes"} for n in range(12)]


def zip_of(*names: str) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), JSON_LINES)
    return sink.getvalue()


def open_document() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr(zipfile.ZipInfo("mimetype"), "application/vnd.oasis.opendocument.spreadsheet")
    return sink.getvalue()


def tar_of(form: int = tarfile.PAX_FORMAT) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=form) as archive:
        info = tarfile.TarInfo("rows.jsonl")
        info.size = len(JSON_LINES)
        archive.addfile(info, io.BytesIO(JSON_LINES))
    return sink.getvalue()


def old_tar() -> bytes:
    """Return an archive in the first format of tar, which has no magic."""
    header = bytearray(512)
    header[:10] = b"rows.jsonl"
    header[100:108] = b"0000644\0"
    header[124:136] = b"%011o\0" % len(JSON_LINES)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + JSON_LINES.ljust(-(-len(JSON_LINES) // 512) * 512, b"\0") + bytes(1024)


def _table() -> Any:
    return pa.Table.from_pylist(PAIRS)


def feather() -> bytes:
    sink = io.BytesIO()
    pyarrow.feather.write_feather(_table(), sink)
    return sink.getvalue()


def arrow_stream() -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, _table().schema) as writer:
        writer.write_table(_table())
    return sink.getvalue()


def orc() -> bytes:
    sink = io.BytesIO()
    pyarrow.orc.write_table(_table(), sink)
    return sink.getvalue()


def database() -> bytes:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE rows (prompt TEXT)")
    return connection.serialize()


def numbers() -> bytes:
    sink = io.BytesIO()
    np.save(sink, np.arange(4))
    return sink.getvalue()


def numbers_in_zip() -> bytes:
    sink = io.BytesIO()
    np.savez(sink, prompts=np.arange(4))
    return sink.getvalue()


def python_literals(rows: Sequence[Any]) -> bytes:
    return "".join(f"{row!r}\n" for row in rows).encode()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
LOGIN = (
    b'<!doctype html>\n<html class="">\n<head>\n<title>Log in\n - Hugging Face</title>\n'
    b'<script type="application/ld+json">\n{"@context": "https://schema.org"}\n</script></head><body></body></html>'
)
ACCESS_DENIED = b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code><Message>x</Message></Error>'
CARD = b"---\nlicense: mit\ntask_categories:\n- text-generation\n---\n\n# Rows\n\nSome rows, of some kind.\n"
YAML = b"- messages:\n  - role: user\n    content: hi\n  - role: assistant\n    content: |\n      there\n      you\n"
PROGRAM = b"import json\nimport os, sys\n\nrows = [1, 2]\nfor row in rows:\n    print(json.dumps(row))\n"
BY_INDEX = {"prompt": {"0": "a", "1": "b"}, "completion": {"0": "c", "1": "d"}}
BY_LIST = {"prompt": ["a", "b"], "completion": ["c", "d"]}

# By name: the bytes, and words that the message must have.
FOREIGN_FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "zip": (lambda: zip_of("rows.jsonl"), "a zip archive of 'rows.jsonl': unpack it"),
    "zip without entries": (zip_of, "an empty zip archive"),
    "xlsx": (
        lambda: zip_of("[Content_Types].xml", "xl/workbook.xml"),
        "an Excel workbook (xlsx): save the table as CSV",
    ),
    "docx": (lambda: zip_of("[Content_Types].xml", "word/document.xml"), "a Word document"),
    "ods": (open_document, "an OpenDocument file"),
    "pt": (lambda: zip_of("rows/data.pkl"), "a PyTorch file"),
    "npz": (numbers_in_zip, "a NumPy archive"),
    "jar": (lambda: zip_of("META-INF/MANIFEST.MF"), "a Java archive"),
    "tar": (tar_of, "a tar archive: unpack it"),
    "tar of GNU": (lambda: tar_of(tarfile.GNU_FORMAT), "a tar archive"),
    "tar without magic": (old_tar, "a tar archive"),
    "tar.bz2": (
        lambda: bz2.compress(tar_of()),
        "a bzip2 file that holds a tar archive: unpack it, and give the file inside",
    ),
    "tar.xz": (lambda: lzma.compress(tar_of()), "an xz file that holds a tar archive"),
    "bz2": (
        lambda: bz2.compress(JSON_LINES),
        "a bzip2 file: unpack it, or compress the rows with gzip or zstd",
    ),
    "bz2 of nothing": (lambda: bz2.compress(b""), "a bzip2 file"),
    "xz": (lambda: lzma.compress(JSON_LINES), "an xz file"),
    "xz that is cut off": (lambda: lzma.compress(JSON_LINES)[:40], "an xz file"),
    "lzma": (lambda: lzma.compress(JSON_LINES, lzma.FORMAT_ALONE), "an LZMA file"),
    "gz twice": (lambda: gzip.compress(gzip.compress(JSON_LINES, mtime=0), mtime=0), "compressed twice"),
    "7z": (lambda: b"7z\xbc\xaf\x27\x1c\x00\x04rest", "a 7z archive"),
    "rar": (lambda: b"Rar!\x1a\x07\x01\x00rest", "a RAR archive"),
    "lz4": (lambda: b"\x04\x22\x4d\x18\x64\x40\xa7rest", "an lz4 file"),
    "xls": (lambda: b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "an old Office file, such as xls"),
    "feather": (feather, "an Arrow file"),
    "arrow": (arrow_stream, "an Arrow file (a stream"),
    "orc": (orc, "an ORC file"),
    "avro": (lambda: b"Obj\x01\x04\x16avro.schema", "an Avro file"),
    "hdf5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(8), "an HDF5 file"),
    "sqlite": (database, "an SQLite database"),
    "npy": (numbers, "a NumPy array"),
    "pickle": (lambda: pickle.dumps(ROWS), "a Python pickle"),
    "pickle in text": (lambda: pickle.dumps(ROWS, 0), "a Python pickle"),
    "pickle of protocol 1": (lambda: pickle.dumps(ROWS, 1), "a Python pickle"),
    "safetensors": (lambda: safetensors.numpy.save({"w": np.zeros(2)}), "a safetensors model"),
    "gguf": (lambda: b"GGUF\x03\x00\x00\x00", "a GGUF model"),
    "tfrecord": (
        lambda: (40).to_bytes(8, "little") + b"\x01\x02\x03\x04\n\x26\n\x24" + bytes(40),
        "a TFRecord file",
    ),
    "pdf": (
        lambda: b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj",
        "a PDF: write its contents as questions and answers",
    ),
    "png": (lambda: b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "an image"),
    "rtf": (lambda: rb"{\rtf1\ansi question}", "an RTF document"),
    "program": (lambda: b"\x7fELF\x02\x01\x01" + bytes(9), "a program"),
    "other bytes": (lambda: bytes(range(5, 256)), "binary data (byte 1 is 0x05)"),
    "zeros": (lambda: bytes(4000), "nothing but zero bytes: upload the file again"),
    "key": (lambda: b"-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNz\n", "a key or a certificate"),
    "login page": (lambda: LOGIN, "an HTML page titled 'Log in - Hugging Face', often a login or error page"),
    "html after a comment": (lambda: b"\xef\xbb\xbf\n<!-- x -->\n<HTML><BODY>", "an HTML page"),
    "error of a store": (lambda: ACCESS_DENIED, "an XML error document of an object store (AccessDenied)"),
    "xml": (lambda: b"<?xml version='1.0'?>\n<rows><row>a</row></rows>", "an XML document"),
    "lfs": (
        lambda: LFS,
        "a Git LFS pointer instead of the file itself: fetch the content with `git lfs pull`",
    ),
    "annex": (lambda: b"/annex/objects/SHA256E-s1--ab.jsonl\n", "a git-annex pointer"),
    "dvc": (lambda: b"outs:\n- md5: ab\n  path: rows.jsonl\n", "a DVC pointer"),
    "UTF-16": (lambda: JSON_LINES.decode().encode("utf-16"), "text in UTF-16: save it as UTF-8"),
    "UTF-16 big": (lambda: JSON_LINES.decode().encode("utf-16-be"), "text in UTF-16"),
    "UTF-16 little": (lambda: JSON_LINES.decode().encode("utf-16-le"), "text in UTF-16"),
    "UTF-16 table": (lambda: "prompt\tcompletion\r\nwarum\tdarum\r\n".encode("utf-16"), "text in UTF-16"),
    "UTF-32": (lambda: JSON_LINES.decode().encode("utf-32"), "text in UTF-32"),
    "UTF-32 little": (lambda: JSON_LINES.decode().encode("utf-32-le"), "text in UTF-32"),
    "latin-1": (lambda: JSON_LINES.decode().encode("latin-1"), "text that is not UTF-8 (row 1: byte "),
    "yaml": (lambda: YAML, "a YAML document"),
    "yaml with front": (
        lambda: b"---\nprompt: a\ncompletion: b\n---\nprompt: c\ncompletion: d\n",
        "a YAML document",
    ),
    "markdown": (lambda: b"# Rows\n\nHello, world\n- a, b\n", "a Markdown document"),
    "dataset card": (lambda: CARD, "a Markdown document"),
    "markdown table": (lambda: b"| prompt | completion |\n|---|---|\n| a | b |\n", "a Markdown document"),
    "python": (lambda: PROGRAM, "Python source"),
    "script": (lambda: b"#!/bin/sh\necho hello\n", "a program (a script)"),
    "python literals": (lambda: python_literals(ROWS), "Python's own notation, which is not JSON"),
    "python list": (lambda: repr(ROWS).encode(), "Python's own notation"),
    "javascript": (lambda: b"const rows = [\n  {prompt: 'a'},\n];\n", "JavaScript source"),
    "C": (lambda: b"#include <stdio.h>\nint main() { return 0; }\n", "program source"),
    "assignment": (lambda: b"rows = [\n  ('a', 'b'),\n]\n", "program source"),
    "JSON with comments": (lambda: b"// rows\n[{}]\n", "JSON or source with comments"),
    "part of a page": (lambda: b"<p>Sign in to continue</p>\n", "an HTML page"),
    "more text than rows": (
        lambda: JSON_LINES + b"some words\n" * 20,
        "other text between the rows (20 of 32 are not JSON",
    ),
    "rows by name": (lambda: json.dumps({"a": ROWS[0], "b": ROWS[1]}).encode(), "an object of rows by name"),
    "jinja": (lambda: b"{% for m in messages %}\n{{ m.content }}{% endfor %}", "a Jinja template"),
    "toml": (lambda: b"[rows]\npath = 'x'\ncount = 3\n", "a settings file"),
    "sql": (lambda: b"INSERT INTO rows VALUES ('a', 'b');\n", "an SQL dump"),
    "log": (lambda: b"2024-01-01 10:00:00 INFO one\n2024-01-01 10:00:01 INFO two\n", "a log file"),
    "log with brackets": (lambda: b"[INFO] started\n[INFO] ended\n", "a log file"),
    "conversation": (
        lambda: b"User: hello\nAssistant: hi\n\nUser: and?\nAssistant: so\n",
        "a written conversation",
    ),
    "rendered": (
        lambda: b"<s>[INST] hi [/INST] ho </s>\n" * 3,
        "text that a chat template has already rendered",
    ),
    "subtitles": (lambda: b"1\n00:00:01,000 --> 00:00:02,000\nhello\n", "subtitles"),
    "base64": (
        lambda: base64.encodebytes(gzip.compress(JSON_LINES, mtime=0)),
        "text in base64 of compressed data",
    ),
    "address": (
        lambda: b"https://huggingface.co/datasets/x/resolve/main/rows.jsonl\n",
        "an address instead of the file",
    ),
    "prose": (lambda: b"Once upon a time, there was.\nAnother line, with more.\n", "plain text (row 1: "),
    "bars": (lambda: b"prompt|completion\na|b\n", "a table separated by |"),
    "table without header": (
        lambda: b'What is one and one?,two\nWhat is red?,"a color, bright"\nWho?,me\n',
        "a table without the names of its columns",
    ),
    "table of Excel": (lambda: b"sep=;\r\nprompt;completion\r\na;b\r\n", "a table below a line `sep=`"),
    "ragged table": (
        lambda: b"prompt,completion\na,b,c\nd,e,f\ng,h\n",
        "a table whose rows do not fit its header (row 1: ",
    ),
    "NaN": (lambda: b'{"prompt": "q", "completion": "a", "score": NaN}\n' * 3, "rows with NaN or Infinity"),
    "commas": (lambda: JSON_LINES.replace(b"\n", b",\n"), "JSON objects with a comma after each"),
    "commas on one line": (
        lambda: JSON_LINES.strip().replace(b"\n", b","),
        "JSON objects with a comma after each",
    ),
    "encoded twice": (
        lambda: b"".join(json.dumps(line.decode()).encode() + b"\n" for line in JSON_LINES.splitlines()),
        "JSON texts inside JSON texts",
    ),
    "array of texts": (lambda: b'["one", "two"]', "JSON values that are not objects (row 1: "),
    "lines of lists": (lambda: b'["q", "a"]\n["r", "b"]\n', "JSON values that are not objects"),
    "JSON5": (
        lambda: b"{prompt: 'a', completion: 'b'}\n",
        "text that begins like JSON and is none (row 1: column 2",
    ),
    "text sequence": (lambda: b"\x1e" + JSON_LINES.replace(b"\n", b"\n\x1e"), "a JSON text sequence"),
    "events": (
        lambda: b"data: " + JSON_LINES.replace(b"\n", b"\n\ndata: "),
        "a stream of server-sent events",
    ),
    "columns of pandas": (lambda: json.dumps(BY_INDEX).encode(), "a table written by columns"),
    "indented columns of pandas": (
        lambda: json.dumps(BY_INDEX, indent=1).encode(),
        "a table written by columns",
    ),
    "lists by column": (lambda: json.dumps(BY_LIST).encode(), "a table written by columns, each as a list"),
    "rows by number": (
        lambda: json.dumps({"0": PAIRS[0], "1": PAIRS[1]}).encode(),
        "an object of numbered rows",
    ),
    "split of pandas": (
        lambda: json.dumps({"columns": ["prompt"], "index": [0], "data": [["a"]]}).encode(),
        "lists of values beside the names of its columns",
    ),
    "notebook": (
        lambda: json.dumps({"cells": [{"source": []}], "nbformat": 4}, indent=1).encode(),
        "a Jupyter notebook",
    ),
    "error of a server": (
        lambda: b'{"error":"Invalid username or password."}',
        "'Invalid username or password.'",
    ),
    "model config": (
        lambda: b'{"architectures": ["LlamaForCausalLM"], "vocab_size": 3}',
        "a configuration file of a model",
    ),
}
