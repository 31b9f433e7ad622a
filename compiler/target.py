# SPDX-License-Identifier: Apache-2.0
"""What a recipe's target and exports mean for layouts: their size and what is legal."""

from __future__ import annotations

from prunec.compiler.model.facts import Facts
from prunec.compiler.recipe import Recipe
from prunec.compiler.search.budget import Budget
from prunec.exporters import EXPORTERS


def budget_of(recipe: Recipe, facts: Facts) -> Budget:
    """Size and legality of the layouts that the recipe allows: every export must express them."""
    kind = recipe.target.layout
    exporters = [EXPORTERS[export.kind] for export in recipe.export]
    return Budget(
        facts=facts,
        sparsity=recipe.target.sparsity,
        multiple_of=recipe.target.multiple_of,
        tied=kind == "uniform",
        attention_is_legal=lambda queries, kv: all(
            exporter.attention_is_legal(facts, kind, queries, kv) for exporter in exporters
        ),
    )
