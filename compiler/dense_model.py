# SPDX-License-Identifier: Apache-2.0
"""Which dense model a build was made from: told to its store, so that `validate` need not ask. A
store is of this machine alone: a place has no business in what is handed on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from prunec.compiler.diagnostics import Diagnostic, UserError
from prunec.compiler.output_folder import DENSE_MODEL, STORE
from prunec.compiler.plan_builder import Subject
from prunec.compiler.recipe import ModelSpec
from prunec.compiler.store import write_text
from prunec.validators.errors import ValidationError
from prunec.validators.headers import read_json_object
from prunec.validators.manifest import MANIFEST


@dataclass(frozen=True)
class DenseModel:
    """source: a folder's place, or an id of the hub; commit: of the hub's model; identity: changes
    when the checkpoint does, None where it is not known"""

    source: str
    commit: str | None
    identity: str | None


def remember(store: Path, model: ModelSpec, subject: Subject) -> None:
    """Tell the store of a build, which exists, what the build is made from."""
    content = asdict(DenseModel(model.source, subject.commit, subject.identity))
    text = json.dumps(content, indent=2) + "\n"
    if (
        not (store / DENSE_MODEL).is_file()
        or (store / DENSE_MODEL).read_text(encoding="utf-8") != text
    ):
        write_text(store / DENSE_MODEL, text)


def dense_model_of(folder: Path) -> DenseModel:
    """The dense model of a build, or of an artefact in one. UserError where that is not known."""
    place = folder.resolve()
    for build in (place, place.parent):
        if (build / MANIFEST).is_file():
            for store in (build / STORE, build.parent / STORE):  # a sweep's is of all its points
                if (found := _remembered(store)) and _is_there(found):
                    return found
            if found := _of_the_hub(build):
                return found
    raise UserError(
        Diagnostic(
            f"which dense model {folder} is to be compared with is not known: give it by --against,"
            " or a --recipe's model.source",
            hint=f"prunec validate {folder} --against path/to/the/dense/model",
        )
    )


def _remembered(store: Path) -> DenseModel | None:
    try:
        return DenseModel(**read_json_object(store / DENSE_MODEL))
    except (ValidationError, TypeError):
        return None


def _is_there(model: DenseModel) -> bool:
    place = Path(model.source)
    return not place.is_absolute() or (place / "config.json").is_file()


def _of_the_hub(build: Path) -> DenseModel | None:
    """By the manifest, which tells the commit of a model that came from the hub."""
    try:
        model = read_json_object(build / MANIFEST).get("model")
    except ValidationError:
        return None
    if not isinstance(model, dict) or not isinstance(model.get("commit"), str):
        return None
    return DenseModel(str(model.get("source")), model["commit"], None)
