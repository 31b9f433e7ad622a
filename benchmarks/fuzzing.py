# SPDX-License-Identifier: Apache-2.0
"""Recipes and checkpoints for fuzzing: drawn from the schema and from a sound model, then damaged.

Whatever draws from a `random.Random` here can be driven by hypothesis (`st.randoms`) and by a seed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from prunec.compiler.calibration import sources
from prunec.compiler.diagnostics import BuildError, UserError
from prunec.compiler.model.checkpoint import Checkpoint
from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.facts import facts_from_config
from prunec.compiler.model.folder import facts_from_folder
from prunec.compiler.model.headers import INDEX, SINGLE
from prunec.compiler.model.layout import dense_layout, tensor_shapes
from prunec.compiler.model.special_ids import check_tokenizer
from prunec.compiler.plan_builder import Subject
from prunec.compiler.planned import plan_recipe
from prunec.compiler.recipe import ModelSpec, recipe_schema
from prunec.compiler.subject import subject_for_plan
from prunec.validators.artefact import inspect
from prunec.validators.errors import ValidationError

#: No recipe and no header takes as long, on a busy machine either.
SECONDS = 60

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 2,
    "vocab_size": 16,
    "tie_word_embeddings": False,
}

NAMES = ["model", "text.txt", "other.txt", "config.json", "*.txt", "org/name", "main", "a b", "x"]
ODD = ["", "\0", "\ud800", "\u202e", "é" * 3000, "../../etc/passwd", "/dev/zero", "~nobody/x", "**",
       "a: b", "<<", "!!python/object:os.system", "&a", "*a", "1e999", "0x", "-", "[", "%", "\t",
       "\N{PILE OF POO}" * 50, "null", "hf_" + "a" * 34, "{{7*7}}", "\r\n", "\x85"]  # fmt: skip
JUNK: list[Any] = [None, True, False, 0, -1, 1, 2**31, 2**63 - 1, 2**63, -(2**70), 0.0, -0.0, 1e308,
                   float("nan"), float("inf"), 0.5, [], {}, [[]], [None], {"a": 1}, {"kind": "tyr"},
                   {"kind": []}, [{}] * 50, *ODD]  # fmt: skip
LINES = ["a: &a [*a, *a]", "? [a]\n: b", "- " * 60, "[" * 60, "{" * 60, "--- !x", "...",
         "%YAML 9.9", "x: 1" + "0" * 6000, "y: 0x" + "f" * 5000, "z: " + "1" * 5000 + ".5",
         "k: |\n  a", "'", '"', "k: >-\n", "# \u2028", "<<: {a: 1}", "a: b: c", "\ufeff", "? ",
         ": ", "!!binary aGk="]  # fmt: skip


class TooSlowError(Exception):
    """An input took longer than any may."""


class Writer:
    """Draws what a JSON schema allows, now and then something else."""

    def __init__(self, draw: random.Random, damage: float) -> None:
        self.draw, self.damage = draw, damage
        self.definitions: dict[str, Any] = _schema()["definitions"]

    def recipe(self) -> Any:
        found = self.value(_schema(), "")
        return self.settled(found) if self.draw.random() < 0.8 else found

    def settled(self, found: Any) -> Any:
        """With what the schema does not say of sections that have to fit together."""
        try:
            for name in ("revision", "config"):
                found["model"].pop(name, None)
            sizes = {
                "sparsity": 0.5,
                "parameters": 700,
                "weight_bytes": 1400,
                "kv_bytes_per_token": 32,
            }
            found["target"] = {
                k: v for k, v in found["target"].items() if k not in {*sizes, "speedup"}
            }
            size = self.draw.choice([*sizes, "sparsity", "sparsity"])
            found["target"][size] = sizes[size]
            found["export"] = list({one["kind"]: one for one in found["export"]}.values())
            method = found["method"]["kind"]
            text = {"kind": "text", "files": ["text.txt"]}
            if method != "magnitude":
                found.setdefault("calibration", {}).update(
                    source=text, tokens=4096, sequence_length=64
                )
            if self.draw.random() < 0.5 or method not in ("tyr", "adapruner"):
                found.pop("search", None)
            if self.draw.random() < 0.7:
                found.pop("validate", None)
            if self.draw.random() < 0.5:
                found["method"] = {"kind": method}
        except (TypeError, KeyError, AttributeError, ValueError):
            pass  # damaged, as it should be now and then
        return found

    def value(self, schema: Any, key: str) -> Any:
        draw = self.draw
        if draw.random() < self.damage:
            return draw.choice(JUNK)
        for choice in ("oneOf", "anyOf", "allOf"):
            if choice in schema:
                return self.value(draw.choice(schema[choice]), key)
        if "$ref" in schema:
            return self.value(self.definitions[schema["$ref"].rpartition("/")[2]], key)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return draw.choice(schema["enum"])
        kind = schema.get("type")
        if kind == "object":
            return self.mapping(schema)
        if kind == "array":
            least = schema.get("minItems", 0)
            most = min(schema.get("maxItems", least + 2), least + 2)
            size = draw.randint(least, most)
            return [self.value(schema.get("items", {}), key) for _ in range(size)]
        if kind in ("integer", "number"):
            return self.number(schema, kind == "integer")
        if kind == "boolean":
            return draw.random() < 0.5
        if kind == "null":
            return None
        fitting = {"source": "model", "files": "text.txt", "config": "config.json"}
        return fitting.get(key, "x") if draw.random() < 0.9 else draw.choice(NAMES)

    def mapping(self, schema: Any) -> dict[str, Any]:
        draw, found = self.draw, dict[str, Any]()
        for name, inner in schema.get("properties", {}).items():
            wanted = name in schema.get("required", ()) or draw.random() < 0.3
            if wanted and draw.random() >= self.damage / 4:
                found[name] = self.value(inner, name)
        others = schema.get("additionalProperties")
        if isinstance(others, dict):
            for _ in range(draw.randint(schema.get("minProperties", 0), 2)):
                names = schema.get("propertyNames", {}).get(
                    "enum", ["a", "prose", "hf", "arc_easy"]
                )
                found[draw.choice(names)] = self.value(others, "")
        if draw.random() < self.damage / 2:
            found[draw.choice(["kind", "x", "sourc", *ODD])] = draw.choice(JUNK)
        return found

    def number(self, schema: Any, whole: bool) -> Any:
        low = schema.get("minimum", schema.get("exclusiveMinimum", 0))
        high = schema.get("maximum", schema.get("exclusiveMaximum", low + 10_000))
        if whole:
            low += "exclusiveMinimum" in schema
            if self.draw.random() < 0.05:
                return schema.get("maximum", 2**62)
            return self.draw.choice([low, max(low, min(high, 64)), max(low, min(high, 4096))])
        return low + (high - low) * self.draw.choice([0.01, 0.3, 0.5, 0.99, 1e-12])


@cache
def _schema() -> Any:
    return recipe_schema()


def recipe_bytes(draw: random.Random) -> bytes:
    """A recipe file: of a valid shape, with wrong values, or with damaged text."""
    value = Writer(draw, draw.choice([0.0, 0.0, 0.02, 0.1])).recipe()
    try:
        text = yaml.safe_dump(
            value, allow_unicode=True, default_flow_style=draw.choice([None, True])
        )
    except (yaml.YAMLError, ValueError):  # what YAML cannot say, JSON escapes
        text = json.dumps(value)
    if draw.random() < 0.3:
        lines = text.split("\n")
        for _ in range(draw.randint(1, 3)):
            lines.insert(draw.randrange(len(lines) + 1), draw.choice(LINES))
        text = "\n".join(lines)
    data = text.encode("utf-8", "surrogatepass")
    return _bytes_damaged(data, draw) if draw.random() < 0.3 else data


def try_recipe(path: Path) -> str:
    """Load and plan. "planned" or "refused"; anything else that happens is raised."""
    try:
        plan_recipe(path, (), _find)
    except UserError as error:
        assert error.diagnostics
        for one in error.diagnostics:
            assert "\n" not in one.message and len(one.message) < 3000, one.message
        return "refused"
    except BuildError as error:
        assert "\n" not in error.message, error.message
        return "refused"
    return "planned"


def _find(model: ModelSpec) -> Subject:
    if not model.folder and not model.config:
        raise BuildError("there is no network here")
    return subject_for_plan(model)


def make_folder(folder: Path) -> None:
    """A sound checkpoint of zeros and the texts that recipes name."""
    write_model(folder / "model", CONFIG, sound_header()[0], sound_header()[1])
    (folder / "model" / "tokenizer.json").write_text("{}")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for name in ("text.txt", "other.txt"):
        (folder / name).write_text("words " * 20_000)
    sources.file_identity = cache(sources.file_identity)  # hashing files is not what is tried


def write_model(folder: Path, config: Any, header: bytes, body: int) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    with (folder / SINGLE).open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + body)


@cache
def sound_header() -> tuple[bytes, int]:
    """The header of a sound checkpoint of CONFIG in float32, and how many bytes follow it."""
    facts, header, end = facts_from_config(CONFIG), dict[str, Any](), 0
    for name, shape in tensor_shapes(facts, dense_layout(facts)).items():
        size = 4
        for length in shape:
            size *= length
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    return json.dumps(header).encode(), end


def damage_checkpoint(folder: Path, draw: random.Random) -> None:
    """Write a checkpoint and damage its header, its index, its config or its length."""
    header, body = sound_header()
    config: Any = dict(CONFIG)
    entries = json.loads(header)
    for _ in range(draw.choice([0, 1, 1, 2, 3])):
        name = draw.choice(list(entries))
        entry = entries[name]
        how = draw.randrange(7)
        if how == 0:
            entries[name] = draw.choice(JUNK)
        elif how == 1 and isinstance(entry, dict):
            entry[draw.choice(["dtype", "shape", "data_offsets"])] = draw.choice(JUNK)
        elif how == 2 and isinstance(entry, dict) and entry.get("data_offsets"):
            entry["data_offsets"] = [draw.choice([-1, 0, 8, 64, body, 2**63, 2**64, 1.5])] * 2
        elif how == 3 and len(entries) > 2:
            del entries[name]
        elif how == 4:
            entries[draw.choice(["__metadata__", *map(str, ODD)])] = draw.choice(JUNK)
        elif how == 5 and isinstance(entry, dict):
            entry["shape"] = [draw.choice([0, 1, 8, 2**31, 2**62, -1, True, "8"])] * 2
        else:
            config[draw.choice(list(config))] = draw.choice([*JUNK, 3, 7, 10**12])
    header = json.dumps(entries).encode()
    if draw.random() < 0.3:
        header = _bytes_damaged(header, draw)
    body = max(0, body + draw.choice([0, 0, 0, 1, -1, -body]))
    write_model(folder, config, header, body)
    (folder / INDEX).unlink(missing_ok=True)
    if draw.random() < 0.2:
        (folder / SINGLE).write_bytes(_bytes_damaged((folder / SINGLE).read_bytes(), draw))
    if draw.random() < 0.3:
        shards = [
            SINGLE,
            SINGLE,
            SINGLE,
            "a\nb",
            "../" + SINGLE,
            "/etc/passwd",
            "",
            ".",
            "config.json",
        ]
        index: Any = {"weight_map": {name: draw.choice(shards[: draw.choice([3, 9])])
                                     for name in entries}}  # fmt: skip
        if draw.random() < 0.2:
            index = draw.choice([draw.choice(JUNK), {"weight_map": draw.choice(JUNK)}])
        (folder / INDEX).write_text(json.dumps(index))
    _damage_tokenizer(folder, draw)


def _damage_tokenizer(folder: Path, draw: random.Random) -> None:
    """Write the files of a tokenizer in which anything may stand in the place of anything."""
    token = {"content": draw.choice(ODD), "id": draw.choice([0, 300, *JUNK])}
    pairs = [[draw.choice(ODD), draw.choice(JUNK)] for _ in range(3)]
    vocabulary = draw.choice([{"a": 0, "b": draw.choice(JUNK)}, pairs, draw.choice(JUNK)])
    tokens = draw.choice([[token], {"7": token}, draw.choice(JUNK)])
    whole = {"model": {"vocab": vocabulary}, "added_tokens": tokens}
    config = {"added_tokens_decoder": tokens, "eos_token": draw.choice(["a", token, *JUNK])}
    for name, content in (("tokenizer.json", whole), ("tokenizer_config.json", config)):
        data = json.dumps(content).encode("utf-8", "surrogatepass")
        (folder / name).write_bytes(_bytes_damaged(data, draw) if draw.random() < 0.2 else data)


def try_checkpoint(folder: Path) -> str:
    """Read all that a build would. "read" or "refused"; anything else that happens is raised."""
    try:
        inspect(folder)
    except ValidationError as error:
        assert "\n" not in error.message, error.message
    try:
        check_tokenizer(facts_from_config(CONFIG), folder)
    except ModelError as error:
        assert "\n" not in error.message and len(error.message) < 3000, error.message
    try:
        facts = facts_from_folder(folder)
        checkpoint = Checkpoint(folder, facts)
        for name, shape in tensor_shapes(facts, dense_layout(facts)).items():
            assert tuple(checkpoint.tensor(name).shape) == shape, name
    except ModelError as error:
        assert "\n" not in error.message and len(error.message) < 3000, error.message
        return "refused"
    return "read"


def _bytes_damaged(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(changed) + 1)
        how = draw.randrange(4)
        if how == 0:
            changed[at : at + 1] = bytes([draw.randrange(256)])
        elif how == 1:
            del changed[at : at + draw.choice([1, 1, 20, 10_000])]
        elif how == 2:
            changed[at:at] = changed[: draw.choice([1, 30])]
        else:
            changed[at:at] = draw.choice(ODD).encode("utf-8", "surrogatepass")
    return bytes(changed)


_EVENTS = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.system", "os.exec"}
_EVENTS |= {"subprocess.Popen", "socket.connect", "shutil.rmtree"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_watched: list[str] | None = None
_hooked = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched is None:
        return
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING:
        # Both are of libraries that are imported on the way.
        if "__pycache__" not in str(arguments[0]) and arguments[0] != os.devnull:
            _watched.append(str(arguments[0]))
    elif event in _EVENTS and "__pycache__" not in str(arguments[0]):
        _watched.append(f"{event} {arguments[0]}")


@contextmanager
def nothing_written() -> Iterator[None]:
    """AssertionError if anything is written, started or connected to inside; TooSlowError after
    SECONDS."""
    global _watched, _hooked
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked = True

    def late(*_: object) -> None:
        raise TooSlowError

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    _watched = []
    try:
        yield
        assert not _watched, _watched
    finally:
        _watched = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
