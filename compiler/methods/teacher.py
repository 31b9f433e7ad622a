# SPDX-License-Identifier: Apache-2.0
"""The step that keeps what the dense model says on the search text, to compare with."""

from __future__ import annotations

from prunec.compiler import estimates_search
from prunec.compiler.plan_builder import PlanBuilder

#: Most likely tokens of the dense model that are kept apart when distributions are compared.
TOP_K = 512


def add_teacher(steps: PlanBuilder, top_k: int = TOP_K) -> None:
    """The dense model's distributions on the search text: `top_k` tokens and a tail. Added once."""
    if any(step.name == "teacher" for step in steps.steps):
        return
    top = min(top_k, steps.facts.vocab_size)
    steps.add(
        "teacher",
        "teacher",
        "next-token distributions of the dense model",
        steps.model | {"top_k": top},
        {"tokens": "search-tokens"},
        estimates_search.teacher(steps.sizes, steps.text("search-tokens"), top),
    )
