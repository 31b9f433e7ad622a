# SPDX-License-Identifier: Apache-2.0
"""What looks like an access token: refused in recipes, which are copied into artefacts, and hidden
where a library's message is passed on."""

from __future__ import annotations

import re

#: Tokens of the hub, of GitHub and of common services; a name and password, or a token, in a URL.
SECRET = re.compile(
    r"\b(?:hf_|api_org_)[A-Za-z0-9]{20,}"
    r"|\b(?:gh[opsur]_|github_pat_)[A-Za-z0-9_]{30,}"
    r"|\bsk-(?=[\w-]*[0-9])[\w-]{20,}"
    r"|\bAKIA[0-9A-Z]{16}\b"
    r"|(?<=://)[^\s/@'\"]+:[^\s/@'\"]+(?=@)"
    r"|(?<=[?&]token=)[^\s&'\"]+"
    r"|(?<=[?&]access_token=)[^\s&'\"]+"
)


def redacted(text: str) -> str:
    """The text with what looks like a secret replaced by `***`."""
    return SECRET.sub("***", text)
