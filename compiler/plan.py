# SPDX-License-Identifier: Apache-2.0
"""A plan: what a build does, as data. Frozen, serialisable, and fingerprinted step by step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Cost:
    """What a step is expected to take: tokens sent through a whole model, and bytes."""

    token_forwards: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0


@dataclass(frozen=True)
class Step:
    """One thing to do. `kind` says how; `params` with what; `inputs` which steps it reads.

    The fingerprint covers kind, the version of the code behind it, params and the inputs'
    fingerprints: same fingerprint, same bytes out.
    """

    name: str
    kind: str
    why: str
    params: Mapping[str, Any]
    inputs: Mapping[str, str]
    fingerprint: str
    cost: Cost = field(default_factory=Cost)


@dataclass(frozen=True)
class Plan:
    """The steps of a build in the order in which they run."""

    steps: tuple[Step, ...]

    def step(self, name: str) -> Step:
        return next(step for step in self.steps if step.name == name)

    @property
    def fingerprint(self) -> str:
        """Of the whole build."""
        return digest([step.fingerprint for step in self.steps])

    def as_dict(self) -> dict[str, Any]:
        """Plain data, the same for the same build on every machine."""
        return {
            "fingerprint": self.fingerprint,
            "steps": [
                {
                    "name": step.name,
                    "kind": step.kind,
                    "why": step.why,
                    "params": dict(step.params),
                    "inputs": dict(step.inputs),
                    "fingerprint": step.fingerprint,
                    "cost": vars(step.cost),
                }
                for step in self.steps
            ],
        }


def digest(value: Any) -> str:
    """A short, stable name for JSON-ready data: 20 hexadecimal digits of its SHA-256."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:20]
