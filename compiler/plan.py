# SPDX-License-Identifier: Apache-2.0
"""A plan: what a build does, as data. Frozen, serialisable, and fingerprinted step by step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

from prunec.compiler.model.placement import ROOMY, Placement


class Work(StrEnum):
    """What time goes into: floating-point operations of matrix products by their dtype, those of
    factorising and inverting float64 matrices, and bytes that are moved."""

    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"
    FLOAT64 = "float64"
    FACTOR = "factor"
    VECTOR = "vector_bytes"  # of float64 matrices that are multiplied with vectors
    READ = "read_bytes"
    WRITE = "written_bytes"


@dataclass(frozen=True)
class Cost:
    """What a step is expected to take.

    token_forwards: tokens sent through a whole model
    memory_bytes: the process's peak of memory where it runs on the CPU
    host_bytes, gpu_bytes: the same on both sides where it runs on a GPU
    disk_bytes: of what is kept of it
    scratch_bytes: of files that are gone when it ends
    work: how much there is to do, by its kind
    """

    token_forwards: int = 0
    memory_bytes: int = 0
    host_bytes: int = 0
    gpu_bytes: int = 0
    disk_bytes: int = 0
    scratch_bytes: int = 0
    work: Mapping[Work, int] = field(default_factory=dict)


#: What a step takes depends on where its work lies.
Estimate = Callable[[Placement], Cost]


@dataclass(frozen=True)
class Step:
    """One thing to do. `kind` says how; `params` with what; `inputs` which steps it reads.

    `identity` covers kind, the version of the code behind it, params, the inputs' identities and
    the surroundings (libraries, device). Batches of another size round otherwise, which is all that
    a placement changes: the fingerprint covers it, too. Same fingerprint, same bytes out.
    """

    name: str
    kind: str
    why: str
    params: Mapping[str, Any]
    inputs: Mapping[str, str]
    identity: str
    estimate: Estimate = field(repr=False, compare=False)
    cost: Cost
    batch_tokens: int = ROOMY.batch_tokens

    @property
    def fingerprint(self) -> str:
        if self.batch_tokens == ROOMY.batch_tokens:
            return self.identity
        return digest([self.identity, self.batch_tokens])


@dataclass(frozen=True)
class Plan:
    """The steps of a build in the order in which they run; their costs are those of `placement`.

    warnings: sentences on what a build can go on with, and its user should know before it does
    """

    steps: tuple[Step, ...]
    placement: Placement = ROOMY
    warnings: tuple[str, ...] = ()

    def placed(self, placement: Placement) -> Plan:
        """The same steps, with what they take where the work lies elsewhere, and the fingerprints
        of what they then make."""
        batch = placement.batch_tokens
        steps = (replace(s, cost=s.estimate(placement), batch_tokens=batch) for s in self.steps)
        return replace(self, steps=tuple(steps), placement=placement)

    def step(self, name: str) -> Step:
        return next(step for step in self.steps if step.name == name)

    @property
    def fingerprint(self) -> str:
        """Of the whole build."""
        return digest([step.fingerprint for step in self.steps])

    def as_dict(self) -> dict[str, Any]:
        """Plain data, the same for the same build on every machine of a kind."""
        return {
            "fingerprint": self.fingerprint,
            "warnings": list(self.warnings),
            "steps": [
                {
                    "name": step.name,
                    "kind": step.kind,
                    "why": step.why,
                    "params": dict(step.params),
                    "inputs": dict(step.inputs),
                    "fingerprint": step.fingerprint,
                    "cost": asdict(step.cost),
                }
                for step in self.steps
            ],
        }


def digest(value: Any) -> str:
    """A short, stable name for JSON-ready data: 20 hexadecimal digits of its SHA-256."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:20]
