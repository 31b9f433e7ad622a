# SPDX-License-Identifier: Apache-2.0
"""What is said of an exception that nobody has foreseen: a sentence, and where its traceback is."""

from __future__ import annotations

import os
import tempfile
import traceback
from pathlib import Path

from prunec.compiler.diagnostics import BuildError, printable
from prunec.compiler.secrets import redacted


def told(error: Exception) -> BuildError:
    """The error as one of a build that cannot go on; its traceback is in a file of its own."""
    text = redacted("".join(traceback.format_exception(error)))
    said = printable(" ".join(str(error).split()), limit=300)
    sentence = f"{type(error).__name__}: {said}" if said else type(error).__name__
    try:
        number, name = tempfile.mkstemp(prefix="prunec-", suffix=".log")
        os.close(number)
        Path(name).write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError:
        return BuildError(f"{text}{sentence}", hint="this is not foreseen; please report it")
    return BuildError(
        f"{sentence}; the traceback is in {name}",
        hint="this is not foreseen: please report it with that file; finished steps are kept",
    )
