# SPDX-License-Identifier: Apache-2.0
"""Standard output and standard error that may be closed, full or of few characters: what cannot be
printed ends no build and changes no verdict."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, cast


class Unfailing:
    """A text stream that takes everything. The first write that failed is kept, and later ones go
    nowhere."""

    def __init__(self, stream: TextIO) -> None:
        self.failed: OSError | None = None
        self._stream = stream
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # characters that it cannot encode

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self, error: OSError) -> None:
        """Let the rest go nowhere: what is buffered would fail again when the interpreter ends."""
        self.failed = self.failed or error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


class Told:
    """What standard output was to tell, should it fail: where else that is to be found."""

    #: Set by commands whose exit code is a verdict.
    elsewhere: str | None = None


def verdict_is_in(report: Path | None) -> None:
    """From now on the exit code is a verdict, which does not change where it cannot be printed."""
    Told.elsewhere = f"the report is in {report}" if report else "the exit code is the verdict"


@contextmanager
def unfailing_streams() -> Iterator[None]:
    """Inside, nothing fails that is printed. Behind it standard error says what was not, and with a
    disk that is full a command that was only to print ends with exit code 3."""
    Told.elsewhere = None
    before = sys.stdout, sys.stderr
    out, err = (Unfailing(stream or _nowhere()) for stream in before)
    sys.stdout, sys.stderr = cast("TextIO", out), cast("TextIO", err)
    try:
        try:
            yield
        except SystemExit as left:
            out.flush()
            if not _told_of(out) and left.code in (0, None):
                raise SystemExit(3) from None
            raise
        finally:
            out.flush()
            err.flush()
    finally:
        sys.stdout, sys.stderr = before


def _told_of(out: Unfailing) -> bool:
    """Say what standard output did not take. Whether the command has done what it was to do."""
    if out.failed is None:
        return True
    closed = isinstance(out.failed, BrokenPipeError)  # its reader wants no more, which is all right
    if not closed or Told.elsewhere:
        elsewhere = f"; {Told.elsewhere}" if Told.elsewhere else ""
        sys.stderr.write(f"standard output: {out.failed.strerror}{elsewhere}\n")
    return closed or Told.elsewhere is not None


def _nowhere() -> TextIO:
    """For a stream that was closed before the command began."""
    return Path(os.devnull).open("w", encoding="utf-8")
