# SPDX-License-Identifier: Apache-2.0
"""Opens files of text, compressed or not, and says what a file is that is no text."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import IO

from prunec.compiler.calibration.document import SourceError

#: So much of a file says what it is.
HEAD = 64 * 2**10

_BACKPORT = "backports.zstd"
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_OTHERWISE = {
    b"PK\x03\x04": "a zip archive",
    b"%PDF-": "a PDF",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_ENCODINGS = {"UTF-16": "UTF-16", "UTF-32": "UTF-32", "Latin-1": "LATIN1"}
_TABLES = ("a Parquet file", "an Arrow file")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What the system or a decompressor says of a file becomes a SourceError."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise SourceError(f"{path} cannot be decompressed: {error}") from None
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:
        if type(error).__name__ == "ZstdError":  # of a library that may not be there
            raise SourceError(f"{path} cannot be decompressed: {error}") from None
        raise


def compression(path: Path) -> str | None:
    """What a file is compressed with, by its first bytes."""
    with reading(path), path.open("rb") as file:
        return _by_magic(_COMPRESSED, file.read(8))


def opened(path: Path) -> IO[bytes]:
    """A file's bytes, decompressed. SourceError, within `reading` too."""
    match compression(path):
        case "gzip":
            return io.BufferedReader(gzip.open(path))
        case "bzip2":
            return bz2.open(path)
        case "xz":
            return lzma.open(path)
        case "zstd":
            return _zstd(path)
    return path.open("rb")


def _zstd(path: Path) -> IO[bytes]:
    """By Python's own library from 3.14 on, and before by its backport, since others take a file
    that is cut short for a whole one."""
    try:
        zstd = import_module("compression.zstd" if sys.version_info >= (3, 14) else _BACKPORT)
    except ImportError:
        raise SourceError(
            f"{path} is compressed by zstd, which takes {_BACKPORT} to unpack",
            hint="pip install 'prunec[hub]', or unpack it",
        ) from None
    stream: IO[bytes] = zstd.open(path)
    return stream


def head(path: Path) -> bytes:
    """The first bytes of what a file holds, decompressed."""
    with reading(path), opened(path) as file:
        return file.read(HEAD)


def looks(start: bytes) -> str | None:
    """What a file is by its first bytes; None if they are UTF-8 text."""
    if named := _by_magic(_OTHERWISE, start):
        return named
    even, odd = start[::2].count(0), start[1::2].count(0)
    if 4 * max(even, odd) > len(start) > 8 * min(even, odd):
        return "UTF-16"
    if b"\0" in start:
        return "binary data"
    try:
        codecs.utf_8_decode(start, "strict", False)
    except UnicodeDecodeError:
        control = sum(start.count(code) for code in range(32) if code not in b"\t\n\v\f\r\x1b")
        return "binary data" if control else "Latin-1"
    return None


def not_text(path: Path, what: str) -> SourceError:
    """The refusal of a file that is no UTF-8 text, and how to come by one."""
    if what in _TABLES:
        return SourceError(f"{path} is {what}, not text", hint="kind: jsonl reads its rows")
    if what not in _ENCODINGS:
        return SourceError(f"{path} looks like {what}, not UTF-8 text")
    kin = " or another 8-bit encoding" if what == "Latin-1" else ""
    return SourceError(
        f"{path} looks like {what}{kin}; text must be UTF-8",
        hint=f"iconv -f {_ENCODINGS[what]} -t UTF-8 turns it into that",
    )


def decoded(path: Path, data: bytes, at: int, *, ends: bool) -> str:
    """Bytes of a file from the offset `at` on, as text with `\\n` behind lines. A character that
    the end of the file cuts is left out."""
    try:
        if b"\0" in data or (at == 0 and _by_magic(_OTHERWISE, data)):
            raise not_text(path, looks(data) or "binary data")
        text, _ = codecs.utf_8_decode(data, "strict", not ends)
    except UnicodeDecodeError as error:
        what = looks(data[max(0, error.start - HEAD // 2) : error.start + HEAD // 2])
        refusal = not_text(path, what or "binary data")
        raise SourceError(f"{refusal.message} (byte {at + error.start:,})", refusal.hint) from None
    if at == 0:
        text = text.removeprefix("\ufeff")
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _by_magic(table: dict[bytes, str], start: bytes) -> str | None:
    return next((name for magic, name in table.items() if start.startswith(magic)), None)
