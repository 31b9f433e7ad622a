# SPDX-License-Identifier: Apache-2.0
"""One file a method: which steps it takes from tokens to the layers of the smaller model.

A method is a function of the builder and the uniform layout that the target allows; it adds its
steps and names the one that holds the finished layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prunec.compiler.methods import adapruner, importance, magnitude, tyr, uniform
from prunec.compiler.model.layout import Layout
from prunec.compiler.plan_builder import PlanBuilder

METHODS: Mapping[str, Callable[[PlanBuilder, Layout], str]] = {
    "tyr": tyr.plan,
    "adapruner": adapruner.plan,
    "uniform": uniform.plan,
    "importance": importance.plan,
    "magnitude": magnitude.plan,
}
