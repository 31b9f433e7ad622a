# SPDX-License-Identifier: Apache-2.0
"""Adds the steps of a plan one by one; each names the earlier steps that it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunec.compiler.diagnostics import RecipeProblemError
from prunec.compiler.estimates import Sizes, Windows
from prunec.compiler.model.facts import Facts
from prunec.compiler.model.layout import Layout, plain_layout
from prunec.compiler.model.placement import ROOMY
from prunec.compiler.plan import Estimate, Plan, Step, digest
from prunec.compiler.recipe import AdaPrunerMethod, MagnitudeMethod, Recipe
from prunec.compiler.surroundings import surroundings
from prunec.compiler.target import target_params
from prunec.exporters import exporter_for

#: Raised when the code behind a kind of step changes what it writes.
VERSIONS = {
    "tokens": 3,
    "generate": 2,
    "mixture": 1,
    "statistics": 1,
    "finalists": 1,
    "tune": 3,
    "chosen": 1,
    "teacher": 2,
    "supernet": 4,
    "search": 3,
    "resolve": 7,
    "published-supernet": 1,
    "published-search": 1,
    "published-layers": 1,
    "distributions": 1,
    "recover": 1,
    "export": 5,
    "artefact": 1,
    "measure": 3,
    "parity": 1,
    "tasks": 2,
    "dense-export": 3,
    "speed": 2,
    "footprint": 1,
}


@dataclass(frozen=True)
class Subject:
    """The model of a recipe, as far as planning knows it.

    folder: where its checkpoint lies, None while only its config is known
    identity: changes when the checkpoint does
    commit: of the hub's model, where it was looked up
    warnings: what its files hold that a build can go on with, and its user should know
    """

    facts: Facts
    folder: Path | None
    identity: str
    commit: str | None = None
    warnings: tuple[str, ...] = ()


class PlanBuilder:
    """The steps so far, and what the parameters of most steps have in common."""

    def __init__(self, recipe: Recipe, subject: Subject) -> None:
        self.recipe = recipe
        self.facts = subject.facts
        self.folder = subject.folder
        self.identity = subject.identity
        self.steps: list[Step] = []
        self.warnings = list(subject.warnings)
        self.surroundings = surroundings(recipe.resources)
        self.sizes = Sizes(subject.facts, recipe.model.dtype)
        self.model = {"identity": subject.identity, "dtype": recipe.model.dtype}

    def add(
        self,
        name: str,
        kind: str,
        why: str,
        params: Mapping[str, Any],
        inputs: Mapping[str, str],
        estimate: Estimate,
    ) -> None:
        identities = {step.name: step.identity for step in self.steps}
        read = {role: identities[step] for role, step in inputs.items()}
        identity = digest([kind, VERSIONS[kind], dict(params), read, self.surroundings])
        step = Step(
            name, kind, why, dict(params), dict(inputs), identity, estimate, estimate(ROOMY)
        )
        self.steps.append(step)

    def warn(self, sentence: str) -> None:
        """Tell the user something that a build can go on with, once."""
        if sentence not in self.warnings:
            self.warnings.append(sentence)

    @property
    def plan(self) -> Plan:
        return Plan(tuple(self.steps), warnings=tuple(self.warnings))

    def solver(self) -> dict[str, Any]:
        """How local problems are posed, as parameters of a walk."""
        method = self.recipe.method
        assert not isinstance(method, MagnitudeMethod)  # it solves nothing
        dense_target, family = method.dense_target, self.facts.family
        if family.ends_in_norm:
            # What the stream lacks behind a norm is no linear function of the weights before it.
            if dense_target and "dense_target" in method.model_fields_set:
                raise RecipeProblemError(
                    "method.dense_target",
                    f"method.dense_target is {dense_target}; with {family.title} it must be 0, "
                    "since its sublayers end in a norm",
                    hint="leave it out",
                )
            dense_target = 0.0
        posed = {"solver": "least_squares", "dense_target": dense_target}
        if self.tuned:
            return posed
        first_order = getattr(method, "first_order", 0.0)
        return posed | {"damping": method.damping, "first_order": first_order}

    @property
    def tuned(self) -> dict[str, str]:
        """Where a walk finds the settings that are no parameters of its, as inputs of its step:
        nowhere, unless they are tuned."""
        return {"settings": "tune"} if isinstance(self.recipe.method, AdaPrunerMethod) else {}

    def budget(self) -> dict[str, Any]:
        """What decides which layouts are legal, as parameters of a search."""
        return target_params(self.recipe) | self.legality()

    def legality(self) -> dict[str, Any]:
        """The same without the size that is asked for."""
        target = self.recipe.target
        return {
            "multiple_of": target.multiple_of,
            "tied": target.layout == "uniform",
            "exports": [exporter_for(e.model_dump()).rules for e in self.recipe.export],
        }

    def text(self, name: str) -> Windows:
        """The windows that an earlier step draws."""
        params = next(step for step in self.steps if step.name == name).params
        return Windows(params["windows"], params["length"])

    def count(self, name: str) -> int:
        """Tokens that an earlier step draws."""
        return self.text(name).tokens

    def neurons(self, share: float) -> int:
        """A share of the MLP's width in whole multiples of the legal step, at least one."""
        multiple = self.recipe.target.multiple_of
        return multiple * max(1, round(share * self.facts.ffn / multiple))


def plain(layout: Layout) -> list[list[Any]]:
    """A layout as parameters of a step."""
    return plain_layout(layout)
