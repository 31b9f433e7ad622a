# SPDX-License-Identifier: Apache-2.0
"""Whether a checkpoint's tokenizer brings a chat template that its model can read."""

from __future__ import annotations

import json
from pathlib import Path

from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.tokenizer_files import read_tokenizer

#: Holds a template and nothing else.
_OWN = "chat_template.jinja"
_CONFIG = "tokenizer_config.json"


def chat_template_problem(folder: Path, vocab_size: int) -> tuple[str, str] | None:
    """What is wrong with a tokenizer's template, behind "the tokenizer in …", and what would help:
    it is missing, or writes tokens that the model has no embedding for."""
    template = _template(folder)
    if not template:
        return "has no chat template", "add the model's chat_template.jinja, or do without"
    try:
        ids = read_tokenizer(folder).ids
    except ModelError:  # told of elsewhere
        return None
    # Words stand in templates as code too; what marks a turn is no word.
    marks = [token for token in ids if ids[token] >= vocab_size and not token.isalnum()]
    beyond = sorted(token for token in marks if len(token) > 2 and token in template)
    if not beyond:
        return None
    token = f"{beyond[0][:40]!r} (id {ids[beyond[0]]})"
    return (
        f"has a chat template that writes {token}, and the model's vocabulary ends at id "
        f"{vocab_size - 1}",
        "use the tokenizer that the model was trained with, or resize its embedding",
    )


def _template(folder: Path) -> str:
    """The text of a template in any of the places where transformers finds one; empty if none."""
    try:
        if (folder / _OWN).is_file():
            return (folder / _OWN).read_text("utf-8")
        config = json.loads((folder / _CONFIG).read_text("utf-8"))
    except (OSError, ValueError):
        return ""
    found = config.get("chat_template") if isinstance(config, dict) else None
    return str(found) if found else ""
