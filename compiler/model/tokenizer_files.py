# SPDX-License-Identifier: Apache-2.0
"""What the files of a tokenizer say without loading it: its tokens, and the special ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.headers import read_json

#: Files that `tokenizers` reads by itself; with none of them another package has to convert.
_PLAIN = ("tokenizer.json", "vocab.json", "vocab.txt")
#: In the order in which transformers adds those that the vocabulary lacks.
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
#: What a package is imported as, where that is not its name.
_MODULES = {"protobuf": "google.protobuf"}


@dataclass(frozen=True)
class TokenizerFiles:
    """ids: of every token, empty where the files do not tell; special: the ids that
    tokenizer_config.json names by `bos_token` and the like."""

    ids: Mapping[str, int]
    special: Mapping[str, int]


def read_tokenizer(folder: Path) -> TokenizerFiles:
    """ModelError for a file that is damaged, or one that no installed package reads."""
    ids = _vocabulary(folder)
    config = _json(folder / "tokenizer_config.json")
    named = _json(folder / "special_tokens_map.json")
    decoder = config.get("added_tokens_decoder")
    for number, token in decoder.items() if isinstance(decoder, dict) else ():
        if number.isdecimal() and (text := _text(token)) is not None:
            ids.setdefault(text, int(number[:12]))
    if not ids:
        return TokenizerFiles({}, {})
    special: dict[str, int] = {}
    for key in _SPECIAL:
        text = _text(config[key] if key in config else named.get(key))
        if text is not None:
            special[key] = ids.setdefault(text, max(ids.values()) + 1)
    return TokenizerFiles(ids, special)


def _vocabulary(folder: Path) -> dict[str, int]:
    """Token → id, as far as files of a form that is known here tell."""
    if not any((folder / name).exists() for name in _PLAIN):
        return _converted(folder)
    whole = _json(folder / "tokenizer.json")
    model = whole.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else _json(folder / "vocab.json")
    if isinstance(vocabulary, list):  # of Unigram: pairs of a piece and its score
        pieces = [piece[0] if isinstance(piece, list) and piece else None for piece in vocabulary]
        vocabulary = {piece: number for number, piece in enumerate(pieces)}
    ids = {**vocabulary} if isinstance(vocabulary, dict) else {}
    added = whole.get("added_tokens")
    for token in added if isinstance(added, list) else ():
        if isinstance(token, dict):
            ids[_text(token)] = token.get("id")
    ids |= _json(folder / "added_tokens.json")
    return {
        token: number
        for token, number in ids.items()
        if isinstance(token, str) and isinstance(number, int) and number >= 0
    }


def _converted(folder: Path) -> dict[str, int]:
    """The pieces of a SentencePiece model. Of the others only whether they can be read is told."""
    if (folder / "tokenizer.model").exists():
        content = _start(folder / "tokenizer.model")
        if not content.startswith(b"\n"):  # lines of base64 in place of a protocol buffer
            _need(folder, "tokenizer.model", "tiktoken")
            return {}
        library = _need(folder, "tokenizer.model", "protobuf", "sentencepiece")
        try:
            pieces = library.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
            return {pieces.id_to_piece(number): number for number in range(len(pieces))}
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelError(f"{folder / 'tokenizer.model'} cannot be read: {reason}") from None
    if (folder / "tekken.json").exists():
        raise ModelError(
            f"{folder} holds its tokenizer as tekken.json only, which its artefacts would need a "
            "package of its own for",
            hint="make a tokenizer.json of it: pip install mistral-common, then "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)",
        )
    for path in sorted(folder.glob("*.tiktoken"))[:1]:
        _need(folder, path.name, "tiktoken")
    return {}


def _need(folder: Path, file: str, *packages: str) -> Any:
    """The last of the packages that transformers converts a file with. ModelError, which names all
    that are missing, if one cannot be imported."""
    module, reasons = None, {}
    for package in packages:
        try:
            module = import_module(_MODULES.get(package, package))
        except Exception as error:  # what is installed may be broken in any way
            reasons[package] = " ".join(str(error).split())[:100]
    if reasons:
        raise ModelError(
            f"the tokenizer in {folder} is {file} alone, which takes {' and '.join(reasons)} to "
            f"read, and that cannot be imported: {'; '.join(reasons.values())}",
            hint=f"pip install {' '.join(reasons)}; or put a tokenizer.json beside it",
        )
    return module


def _text(token: object) -> str | None:
    """A token as configs write it: its text, or a mapping with its text in it."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) and text else None


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(1)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
