# SPDX-License-Identifier: Apache-2.0
"""Whether a checkpoint's tokenizer brings a chat template, as its files say."""

from __future__ import annotations

import json
from pathlib import Path

#: Holds a template and nothing else.
_OWN = "chat_template.jinja"
_CONFIG = "tokenizer_config.json"


def has_chat_template(folder: Path) -> bool:
    """Whether transformers finds a template in any of the places where tokenizers keep one."""
    if (folder / _OWN).is_file():
        return True
    try:
        config = json.loads((folder / _CONFIG).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and bool(config.get("chat_template"))
