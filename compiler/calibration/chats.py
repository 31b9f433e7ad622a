# SPDX-License-Identifier: Apache-2.0
"""Rows that hold conversations become text through the model's chat template."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunec.compiler.calibration.rows import CONVERSATIONS, PAIRS, RowError, fields

Message = dict[str, Any]

#: Makes text of a conversation, special tokens and all.
Template = Callable[[list[Message]], str]

#: Roles as ShareGPT's rows name them, whose messages are `from` and `value`.
_ROLES = {"human": "user", "gpt": "assistant", "bing": "assistant", "chatgpt": "assistant"}


@dataclass(frozen=True)
class Conversation:
    """Rows whose document is a conversation.

    name: the field of its messages; None takes the usual one, or else a pair of fields for what a
        user says and what is answered
    """

    name: str | None
    template: Template

    @property
    def wanted(self) -> str:
        return f"JSON object with messages in {self.name or CONVERSATIONS[0]!r}"

    def columns(self, there: Sequence[str]) -> list[str]:
        if self.name is not None or (usual := [n for n in CONVERSATIONS if n in there]):
            names = [self.name or usual[0]]
        else:
            names = [*next((pair for pair in PAIRS if {*pair} <= {*there}), CONVERSATIONS[:1])]
        if not {*names} <= {*there}:
            raise RowError(f"no messages in {names[0]!r}", _advice(there, self.name))
        return [*names, *(["input"] if "instruction" in names and "input" in there else [])]

    def text(self, row: Mapping[str, Any]) -> str | None:
        names = self.columns(list(row))
        found = [row[name] for name in names]
        if found[0] is None or (names[1:] and found[1] is None):
            return None
        messages = _pair(names, found) if names[1:] else _messages(found[0], names[0])
        if not any(str(message["content"] or "").strip() for message in messages):
            return ""
        try:
            return self.template(messages)
        except Exception as error:  # a template is the model's own program: whatever it raises
            system = any(message["role"] == "system" for message in messages)
            raise RowError(
                f"the model's chat template refuses this conversation: {_sentence(error)}",
                "it has a system message, which not every model takes" if system else None,
            ) from None


def _pair(names: list[str], found: list[Any]) -> list[Message]:
    """A prompt and its completion, each text or messages, as one conversation; with an input of the
    prompt's where there is a third field."""
    asked, answered, *more = found
    if isinstance(asked, str) and more and isinstance(more[0], str) and more[0].strip():
        asked = f"{asked}\n\n{more[0]}"
    turns: list[Message] = []
    for role, name, said in zip(("user", "assistant"), names, (asked, answered), strict=False):
        turns += (
            [{"role": role, "content": said}] if isinstance(said, str) else _messages(said, name)
        )
    return turns


def _messages(found: Any, field: str) -> list[Message]:
    if not isinstance(found, list):
        raise RowError(f"the field {field!r} holds no list of messages")
    return [_message(one, number) for number, one in enumerate(found, 1)]


def _message(one: Any, number: int) -> Message:
    """A message with a role and a content; fields that are null, as tables fill them in, go."""
    if isinstance(one, Mapping):
        role, content = one.get("role", one.get("from")), one.get("content", one.get("value"))
        if isinstance(content, list) and all(isinstance(p, Mapping) for p in content):
            parts = [part.get("text") for part in content]
            content = "".join(parts) if all(isinstance(part, str) for part in parts) else content
        if isinstance(role, str) and (content is None or isinstance(content, str)):
            rest = {key: value for key, value in one.items() if value is not None}
            rest = {key: rest[key] for key in rest if key not in ("from", "value")}
            return rest | {"role": _ROLES.get(role, role), "content": content}
    raise RowError(
        f"message {number} has no role with a text as its content",
        hint='messages are written {"role": "user", "content": "…"}',
    )


def _advice(there: Sequence[str], name: str | None) -> str:
    advice = f"its fields: {fields(there)}"
    if name is not None:
        return advice
    known = [*CONVERSATIONS, *(" and ".join(pair) for pair in PAIRS)]
    return f"{advice}; read are {', '.join(known)}, or what `field` names"


def _sentence(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
