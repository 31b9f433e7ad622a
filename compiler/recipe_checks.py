# SPDX-License-Identifier: Apache-2.0
"""The checks on single recipe values that a type cannot express: paths, globs and windows.

Each takes the value and pydantic's validation info, and returns the settled value or raises a
`refusal`. Relative paths are relative to `info.context["folder"]`, the recipe's folder, or to the
working folder when there is none.
"""

from __future__ import annotations

import difflib
import glob
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationInfo
from pydantic_core import PydanticCustomError

from prunec.compiler.calibration.tables import is_saved_dataset
from prunec.compiler.diagnostics import quoted, shown

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def refusal(
    problem: str,
    hint: str | None = None,
    *,
    within: tuple[str | int, ...] = (),
    at: tuple[str, ...] = (),
) -> PydanticCustomError:
    """A mistake in our own words: `problem` goes on after the dotted key, `target.sparsity …`.

    The key at fault is the one being validated; or `within` leads to it from there; or it stands
    somewhere else in the recipe, `at` that path from the top.
    """
    # As context, not as the template: pydantic would expand braces that the user wrote.
    context = {"problem": problem, "hint": hint, "within": within, "at": at}
    return PydanticCustomError("refusal", "{problem}", context)


def model_source(source: str, info: ValidationInfo) -> str:
    """The absolute folder of a checkpoint if there is one, else the hub id as given."""
    path = _absolute(source, info)
    if path.is_dir():
        return str(path)
    if path.exists():
        raise refusal(f"is {quoted(source)}; it must be a folder, and {path} is a file")
    if source.startswith((".", "/", "~")):
        near = _near(path, (entry for entry in _listed(path.parent) if entry.is_dir()))
        raise refusal(f"is {quoted(source)}; there is no such folder: {path}", near)
    if HUB_ID.fullmatch(source):
        return source
    raise refusal(
        f"is {quoted(source)}; it must be a folder that exists or a hub id (`org/name`)",
        f"as a folder it would be {path}",
    )


#: What a search may spend where the recipe says nothing.
DEFAULT_TOKEN_FORWARDS = 2_000_000


def hub_only(value: object, info: ValidationInfo) -> object:
    """Refuses a setting that makes sense only for a model of the hub."""
    source = info.data.get("source")
    if value is not None and source is not None and Path(source).is_absolute():
        raise refusal("is legal only with a hub id, and model.source is a folder", "remove it")
    return value


def unless_minutes(token_forwards: int | None, info: ValidationInfo) -> int | None:
    """The token budget: its default where there is no other, none beside minutes."""
    if info.data.get("minutes") is None:
        return token_forwards or DEFAULT_TOKEN_FORWARDS
    if token_forwards is not None:
        raise refusal("is given beside minutes; a search has one budget", "remove one of the two")
    return None


def dataset_id(dataset: str) -> str:
    """A dataset's hub id: `org/name`, or the bare name of an old one."""
    if not HUB_ID.fullmatch(dataset) and not HUB_ID.fullmatch(f"org/{dataset}"):
        raise refusal(f"is {quoted(dataset)}; it must be the id of a hub dataset (`org/name`)")
    return dataset


def files_or_dataset(dataset: str | None, info: ValidationInfo) -> str | None:
    """A dataset's hub id where no files are given."""
    files = info.data.get("files")
    if dataset is None:
        if files is None and "files" in info.data:
            raise refusal("is not given, and neither is files; one of them is needed")
        return None
    if files is not None:
        raise refusal("is given beside files; a source has one of them", "remove one of the two")
    return dataset_id(dataset)


def of_a_dataset(value: str | None, info: ValidationInfo) -> str | None:
    """Refuses a setting that makes sense only for a dataset of the hub."""
    if value is not None and info.data.get("files") is not None:
        raise refusal("is legal only with a dataset of the hub, and files are given", "remove it")
    return value


def absolute_path(path: Path, info: ValidationInfo) -> Path:
    """The absolute path of a file that need not exist yet."""
    return _absolute(str(path), info)


def existing_file(path: Path, info: ValidationInfo) -> Path:
    """The absolute path of a file that must exist."""
    found = _absolute(str(path), info)
    if not found.is_file():
        near = _near(found, _listed(found.parent))
        raise refusal(f"is {quoted(str(path))}; there is no such file: {found}", near)
    return found


def existing_folder(path: Path, info: ValidationInfo) -> Path:
    """The absolute path of a folder that must exist."""
    found = _absolute(str(path), info)
    if not found.is_dir():
        near = _near(found, (entry for entry in _listed(found.parent) if entry.is_dir()))
        raise refusal(f"is {quoted(str(path))}; there is no such folder: {found}", near)
    return found


def text_files(patterns: list[str], info: ValidationInfo) -> list[str]:
    """The absolute, sorted, distinct files, or saved data sets, that names and globs stand for."""
    found: set[str] = set()
    for index, pattern in enumerate(patterns):
        path = _absolute(pattern, info)
        if path.is_file() or is_saved_dataset(path):
            found.add(str(path))
            continue
        if path.is_dir():
            raise refusal(
                f"is {quoted(pattern)}; it must be a file or a glob, and that is a folder",
                f"for every file in it, write {quoted(pattern.rstrip('/') + '/**/*')}",
                within=(index,),
            )
        if not glob.has_magic(pattern):
            near = _near(path, _listed(path.parent))
            raise refusal(
                f"is {quoted(pattern)}; there is no such file: {path}", near, within=(index,)
            )
        # Only what the user wrote is a pattern: the recipe's folder may have brackets in its name.
        root = glob.escape(str(_folder(info)))
        whole = str(Path(root, Path(pattern).expanduser()))
        matches = glob.iglob(whole, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute one
        files = {str(Path(match).resolve()) for match in matches if Path(match).is_file()}
        if not files:
            raise refusal(
                f"is {quoted(pattern)}; no file matches it in {_folder(info)}", within=(index,)
            )
        found |= files
    return sorted(found)


def some_weight(parts: Mapping[str, Any]) -> Mapping[str, Any]:
    """Refuses a mixture of which nothing is taken."""
    if parts and not any(part.weight for part in parts.values()):
        raise refusal("gives every part the weight 0", "give one of them a weight above 0")
    return parts


def some_share(weights: Mapping[str, float]) -> Mapping[str, float]:
    """Refuses weights that are all 0."""
    if weights and not any(weights.values()):
        raise refusal("gives every metric the weight 0", "give one of them a weight above 0")
    return weights


def ascending(interval: list[float]) -> list[float]:
    """Refuses [least, most] the wrong way round."""
    if interval[0] > interval[1]:
        raise refusal(f"is {interval}; it is written [least, most]")
    return interval


def positive(interval: list[float]) -> list[float]:
    """Refuses a 0 where values lie on a logarithmic scale."""
    if interval[0] <= 0:
        raise refusal(f"is {interval}; both must be above 0")
    return interval


def study_file(path: Path | None, info: ValidationInfo) -> Path | None:
    """The absolute path of a file that may exist, in a folder that does."""
    if path is None:
        return None
    found = _absolute(str(path), info)
    if not found.parent.is_dir():
        raise refusal(f"is {quoted(str(path))}; there is no folder {found.parent}")
    return found


def fills_a_window(tokens: int, info: ValidationInfo) -> int:
    """Refuses a number of tokens that is less than one window of text."""
    window = info.data.get("sequence_length")
    if window is not None and tokens < window:
        raise refusal(f"is {tokens}; it must be at least sequence_length ({window})")
    return tokens


def number_or_all(tokens: object) -> object:
    """Refuses what is neither a number of tokens nor `all`, in one sentence for both."""
    if tokens == "all" or (isinstance(tokens, int) and not isinstance(tokens, bool) and tokens > 0):
        return tokens
    raise refusal(f"is {shown(tokens)}; it must be a whole number of at least 1, or all")


def _folder(info: ValidationInfo) -> Path:
    return Path((info.context or {}).get("folder", Path.cwd()))


def _absolute(text: str, info: ValidationInfo) -> Path:
    try:
        path = (_folder(info) / Path(text).expanduser()).resolve()
        path.exists()  # a name that is too long shows only when it is looked up
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: `~nobody`, a loop of links
        raise refusal(f"is {quoted(text)}; it must be a path that this system can read") from error
    return path


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _near(path: Path, there: Iterable[Path]) -> str | None:
    """Advice that names what is there instead of a missing path, the most alike first."""
    names = [entry.name for entry in there if not entry.name.startswith(".")]
    close = difflib.get_close_matches(path.name, names, n=3)
    if close:
        return "did you mean " + " or ".join(quoted(name) for name in close) + "?"
    if not path.parent.is_dir():
        return f"there is no folder {path.parent} either"
    if not names:
        return None
    return f"{path.parent} holds " + ", ".join(quoted(name) for name in names[:5])
