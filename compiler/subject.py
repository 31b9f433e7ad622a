# SPDX-License-Identifier: Apache-2.0
"""Find the model that a recipe names: a folder, a hub id, or for planning a config alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from glob import escape
from pathlib import Path

from prunec.compiler.calibration.sources import SourceError, file_identity
from prunec.compiler.diagnostics import BuildError, RecipeProblemError
from prunec.compiler.model.census import listed, unused_tensors
from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.facts import Facts, facts_from_config
from prunec.compiler.model.folder import ADAPTER, check_no_adapter, facts_from_folder
from prunec.compiler.model.headers import (
    INDEX,
    SINGLE,
    check_inside,
    indexed_names,
    read_json,
    shard_names,
)
from prunec.compiler.model.special_ids import check_padding, check_tokenizer
from prunec.compiler.plan import digest
from prunec.compiler.plan_builder import Subject
from prunec.compiler.recipe import ModelSpec
from prunec.exporters import EXPORTERS

#: What a build reads of a hub repository before it knows which weights it needs: no code.
_HUB_FILES = ["*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken"]
_HUB_FILES += ["LICENSE*", "NOTICE*", "USE_POLICY*"]


def subject_for_plan(model: ModelSpec) -> Subject:
    """As much of the model as is at hand; a config is enough. RecipeProblemError, BuildError."""
    if model.folder:
        return _from_folder(model.folder, model)
    commit = None
    try:
        if model.config:
            config, revision = model.config, model.revision or "main"
        else:
            snapshot = _from_hub(model, ["config.json", ADAPTER])
            check_no_adapter(snapshot)
            config, revision = snapshot / "config.json", snapshot.name
            commit = snapshot.name
        facts = facts_from_config(read_json(config))
        check_padding(facts)
    except ModelError as error:
        raise _unusable(error, model) from None
    content = hashlib.sha256(config.read_bytes()).hexdigest()
    return Subject(facts, None, digest([model.source, revision, content]), commit)


def subject_for_build(model: ModelSpec) -> Subject:
    """The model with its checkpoint, from the hub if need be. RecipeProblemError, BuildError."""
    if model.folder:
        return _from_folder(model.folder, model)
    snapshot = _with_weights(model, _from_hub(model, _HUB_FILES))
    subject = replace(_from_folder(snapshot, model), commit=snapshot.name)
    if model.config and _sizes(facts_from_config(read_json(model.config))) != _sizes(subject.facts):
        raise RecipeProblemError(
            "model.config",
            f"model.config ({model.config}) describes another model than {model.source}",
            hint="remove model.config, or copy the model's own config.json there",
        )
    return subject


def _with_weights(model: ModelSpec, snapshot: Path) -> Path:
    """The snapshot with the weights that its index names: repositories hold the same ones in other
    forms too. What its small files say of the model is looked at before any is fetched."""
    try:
        check_no_adapter(snapshot)
        facts = facts_from_config(read_json(snapshot / "config.json"))
        check_padding(facts)
        check_tokenizer(facts, snapshot)
        weights = indexed_names(snapshot) or [SINGLE]
    except ModelError as error:
        raise _unusable(error, model) from None
    return _from_hub(model, [escape(name) for name in weights], commit=snapshot.name)


def _from_folder(folder: Path, model: ModelSpec) -> Subject:
    try:
        facts = facts_from_folder(folder)
        check_padding(facts)
        warnings = [*_left_out(facts), *check_tokenizer(facts, folder)]
        names = _files_read(folder)
        for name in names:
            check_inside(folder, name)
        identity = digest([[name, file_identity(folder / name)] for name in names])
    except (ModelError, SourceError) as error:
        raise _unusable(error, model) from None
    said = tuple(f"{model.source}: {warning}" for warning in warnings)
    return Subject(facts, folder, identity, warnings=said)


def _left_out(facts: Facts) -> list[str]:
    unused = unused_tensors(facts)
    return [f"no language model uses {listed(unused)}; they are left out"] if unused else []


def stamps(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Size, modification time and inode of every file of a checkpoint that a build reads: they
    change when somebody writes to it. ModelError or OSError if one is gone."""
    found = {name: (folder / name).stat() for name in _files_read(folder)}
    return {name: (stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in found.items()}


def _files_read(folder: Path) -> Iterable[str]:
    names = {"config.json", *shard_names(folder)}
    names |= {INDEX} if (folder / INDEX).exists() else set()
    for exporter in EXPORTERS.values():
        names |= {str(name) for name in exporter.carried_files(folder)}
    return sorted(names)


def _from_hub(model: ModelSpec, patterns: list[str], commit: str | None = None) -> Path:
    """A snapshot's folder, named by its commit: the one that is given, or the recipe's."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                model.source, revision=commit or model.revision, allow_patterns=patterns
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BuildError(
            f"{model.source} cannot be had from the hub: {reason}",
            hint="check the id, the network and HF_TOKEN; or give a folder as model.source",
        ) from None


def _unusable(error: ModelError | SourceError, model: ModelSpec) -> RecipeProblemError:
    named = model.source in error.message
    sentence = error.message if named else f"{model.source}: {error.message}"
    return RecipeProblemError("model.source", sentence, error.hint)


def _sizes(facts: Facts) -> tuple[object, ...]:
    return (
        facts.family.model_type,
        facts.layers,
        facts.hidden_size,
        facts.query_heads,
        facts.kv_heads,
        facts.head_dim,
        facts.ffn,
        facts.vocab_size,
        facts.tied,
        facts.biased,
    )
