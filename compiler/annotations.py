# SPDX-License-Identifier: Apache-2.0
"""Annotations: mistakes where a pull request shows them, beside the line of the recipe.

GitHub Actions takes them from lines that a step prints, on standard error too:
https://docs.github.com/actions/reference/workflow-commands-for-github-actions
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from prunec.compiler.diagnostics import Diagnostic

_PLACE = re.compile(r"(?P<file>.+?):(?P<line>\d+)(:(?P<col>\d+))?", re.DOTALL)


def github_annotations(diagnostics: Sequence[Diagnostic]) -> str:
    """A line `::error …::message` for each; nothing outside of GitHub Actions.

    Files are named relative to $GITHUB_WORKSPACE where they lie in it.
    """
    if os.environ.get("GITHUB_ACTIONS") != "true":
        return ""
    return "".join(_annotation(diagnostic) + "\n" for diagnostic in diagnostics)


def _annotation(diagnostic: Diagnostic) -> str:
    message, place, properties = diagnostic.message, diagnostic.where, {}
    if place and place.startswith("-"):  # an option is no file
        message = f"{place}: {message}"
    elif place and (found := _PLACE.fullmatch(place)):
        properties = {"file": _in_workspace(found["file"]), "line": found["line"]}
        if found["col"]:
            properties["col"] = found["col"]
    elif place:
        properties = {"file": _in_workspace(place)}
    if diagnostic.hint:
        message += f"\nhint: {diagnostic.hint}"
    said = ",".join(f"{key}={_property(text)}" for key, text in properties.items())
    return f"::error {said}{',' if said else ''}title=prunec::{_data(message)}"


def _in_workspace(file: str) -> str:
    workspace = os.environ.get("GITHUB_WORKSPACE")
    if not workspace:
        return file
    try:
        path = Path(file)
        # The recipe itself may be a link out of the workspace; it is still what stands there.
        return (path.parent.resolve() / path.name).relative_to(Path(workspace).resolve()).as_posix()
    except (ValueError, OSError, RuntimeError):
        return file


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
