# SPDX-License-Identifier: Apache-2.0
"""`prunec validate`: judge artefacts that are there, pruned by prunec or by anybody."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from prunec.compiler.calibration.sources import file_identity
from prunec.compiler.dense_model import DenseModel
from prunec.compiler.diagnostics import BuildError, Diagnostic, RecipeProblemError, UserError
from prunec.compiler.estimates import light
from prunec.compiler.model.headers import read_json
from prunec.compiler.model.layout import LayerSpec, plain_layout
from prunec.compiler.output_folder import DEFAULT_RECIPE, STORE, OutputFolder
from prunec.compiler.plan import Plan, digest
from prunec.compiler.plan_builder import PlanBuilder, Subject
from prunec.compiler.plan_measures import add_measurements
from prunec.compiler.plan_tokens import add_evaluation_tokens
from prunec.compiler.recipe import Recipe, Validation
from prunec.compiler.store import write_text
from prunec.exporters import EXPORTERS
from prunec.exporters.vllm_rules import DECILM
from prunec.validators.artefact import GRAPH, Weights, inspect
from prunec.validators.errors import ValidationError
from prunec.validators.footprint import file_bytes

#: What is measured where no recipe says it: text that every Python brings, no gate.
DEFAULT: Mapping[str, Any] = {
    "perplexity": {"source": {"kind": "python_stdlib"}, "tokens": 16_384},
    "size": {},
}


@dataclass(frozen=True)
class Given:
    """Artefacts to be judged: folders by kind, and what is wrong with them by their files alone."""

    folders: Mapping[str, Path]
    problems: Sequence[str]


def find(folder: Path) -> Given:
    """The artefacts of a build's folder, or the one that the folder is. UserError if it is none."""
    try:
        found = inspect(folder)
    except ValidationError as error:
        raise UserError(Diagnostic(error.message, hint=error.hint)) from None
    if found.kind != "build":
        kind = "onnx" if (folder / GRAPH).is_file() else "hf"
        return Given({kind: folder}, found.problems)
    folders = {kind: folder / kind for kind in EXPORTERS if (folder / kind).is_dir()}
    return Given(folders, found.problems)


def overrides_of(against: str | None) -> list[str]:
    """The dense model to compare with, as an override; folders are relative to where we are."""
    if against is None:
        return []
    folder = Path(against).expanduser()
    return [f"model.source={json.dumps(str(folder.absolute()) if folder.is_dir() else against)}"]


def write_default_recipe(given: Given, output: Path) -> Path:
    """A recipe that measures what is measured by default, to be edited and given back."""
    recipe = {
        "schema_version": 1,
        "model": {"source": "settled by --against"},
        # Nothing is made: these two stand here because every recipe has them.
        "method": {"kind": "magnitude"},
        "target": {"sparsity": 0.5},
        "export": [{"kind": kind} for kind in given.folders],
        "validate": dict(DEFAULT),
    }
    path, text = output / DEFAULT_RECIPE, yaml.safe_dump(recipe, sort_keys=False)
    try:
        OutputFolder(output, output / STORE).check((), ())
        if path.exists() and path.read_bytes() != text.encode():
            raise BuildError(
                f"{path} is not what validate would write; it would be replaced",
                hint=f"give it as --recipe {shlex.quote(str(path))}, or move it away",
            )
        output.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise BuildError(f"{path} cannot be written: {error.strerror}") from None
    return path


def make_plan(
    recipe: Recipe, subject: Subject, base: Path, given: Given, made_from: DenseModel | None = None
) -> Plan:
    """The steps that judge. RecipeProblemError for a measurement that has no artefact to be of.

    made_from: what the artefacts were made from, if that is the model to compare with
    """
    validation = recipe.validation
    if validation is None:
        raise RecipeProblemError(
            "validate",
            "the recipe has no `validate`: there is nothing to measure",
            hint="add it, or leave out --recipe to measure what is measured by default",
        )
    folders = _for_all(validation, given.folders)
    steps = PlanBuilder(recipe, subject)
    add_evaluation_tokens(steps, validation, base)
    artefacts: dict[str, str] = {}
    for kind, folder in folders.items():
        artefacts[kind] = f"artefact-{kind}"
        steps.add(
            artefacts[kind],
            "artefact",
            f"what {folder} holds",
            _params(kind, folder, given),
            {},
            light(),
        )
    if made_from and made_from.identity not in (None, subject.identity):
        steps.warn(f"{recipe.model.source} was changed since the artefacts were made from it")
    _warn_of_vocabularies(steps, validation, folders)
    kept = max(file_bytes(folder) for folder in folders.values())
    add_measurements(steps, validation, artefacts, kept)
    return steps.plan


def _warn_of_vocabularies(
    steps: PlanBuilder, validation: Validation, folders: Mapping[str, Path]
) -> None:
    """Distributions over other tokens cannot be compared; perplexity and tasks still are."""
    if not validation.perplexity and not validation.elsewhere:
        return
    for folder in dict.fromkeys(folders.values()):
        tokens = read_json(folder / "config.json").get("vocab_size")
        if isinstance(tokens, int) and tokens != steps.facts.vocab_size:
            steps.warn(
                f"{folder} has {tokens:,} tokens and the dense model {steps.facts.vocab_size:,}: "
                "divergence is not measured, and a gate on it fails"
            )


def _for_all(validation: Validation, folders: Mapping[str, Path]) -> dict[str, Path]:
    """A folder for every runtime that the recipe names; a checkpoint serves vLLM as well."""
    wanted = [
        f"speed.runtimes.{r}" for r in (validation.speed.runtimes if validation.speed else [])
    ]
    wanted += [
        f"tasks.backends.{b}" for b in (validation.tasks.backends if validation.tasks else [])
    ]
    found = dict(folders)
    for key in wanted:
        section, _, kind = key.rpartition(".")
        if kind == "vllm" and "hf" in found:
            found.setdefault("vllm", found["hf"])
        if kind == "hf" and "vllm" in found:
            found.setdefault("hf", found["vllm"])
        if kind not in found:
            raise RecipeProblemError(
                f"validate.{section}",
                f"validate.{section} asks for {kind}, and there is no such artefact",
                hint=f"what is there: {', '.join(found)}; --set validate.{section}=[...]",
            )
    return found


def _params(kind: str, folder: Path, given: Given) -> dict[str, Any]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    described = _weights(folder)
    specs = [
        LayerSpec(s.query_heads, s.kv_heads, s.head_dim, s.ffn, s.query_groups)
        for s in (described.layers if described else ())
    ]
    params: dict[str, Any] = {
        "kind": kind,
        "folder": str(folder.absolute()),
        "identity": digest([[str(p.relative_to(folder)), file_identity(p)] for p in files]),
        "opens_in_transformers": kind != "onnx" and _is_open(folder),
        "layout": plain_layout(tuple(specs)),
        # Told once, by the first of them.
        "problems": list(given.problems) if folder == next(iter(given.folders.values())) else [],
    }
    plan = folder / "prunec" / "plan.json"
    if kind == "onnx" and plan.is_file():
        made = {step["name"]: step["params"] for step in read_json(plan)["steps"]}
        params["precision"] = made["export-onnx"]["precision"]
    return params


def _is_open(folder: Path) -> bool:
    """Whether transformers has a class for it: it has none for vLLM's DeciLM."""
    return read_json(folder / "config.json").get("model_type") != DECILM


def _weights(folder: Path) -> Weights | None:
    try:
        return inspect(folder).weights
    except ValidationError:  # a graph has no safetensors
        return None
