# SPDX-License-Identifier: Apache-2.0
"""From a recipe and the facts of a model to a plan. Reads no weight."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunec.compiler.calibration import sources
from prunec.compiler.diagnostics import RecipeProblemError
from prunec.compiler.estimates import Estimates
from prunec.compiler.model.facts import Facts
from prunec.compiler.model.layout import Layout, dense_layout
from prunec.compiler.plan import Cost, Plan, Step, digest
from prunec.compiler.recipe import MagnitudeMethod, Recipe, Source, TyrMethod
from prunec.compiler.search.budget import Budget, InfeasibleTargetError
from prunec.exporters import EXPORTERS

#: Raised when the code behind a kind of step changes what it writes.
VERSIONS = {
    "tokens": 1,
    "teacher": 1,
    "supernet": 1,
    "search": 1,
    "resolve": 1,
    "export": 1,
    "measure": 1,
}

#: Most likely tokens of the dense model that are kept apart when distributions are compared.
TOP_K = 512


@dataclass(frozen=True)
class Subject:
    """The model of a recipe, as far as planning knows it.

    folder: where its checkpoint lies, None while only its config is known
    identity: changes when the checkpoint does
    """

    facts: Facts
    folder: Path | None
    identity: str


def make_plan(recipe: Recipe, subject: Subject, base: Path) -> Plan:
    """The steps of a build; RecipeProblemError if there are none. `base`: the recipe's folder."""
    return _Planner(recipe, subject, base).plan()


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


class _Planner:
    """Adds steps one by one; each names the earlier steps that it reads."""

    def __init__(self, recipe: Recipe, subject: Subject, base: Path) -> None:
        self.recipe = recipe
        self.facts = subject.facts
        self.identity = subject.identity
        self.base = base
        self.steps: list[Step] = []
        self.estimate = Estimates(subject.facts, recipe.model.dtype)
        self.model = {"identity": subject.identity, "dtype": recipe.model.dtype}

    def plan(self) -> Plan:
        recipe = self.recipe
        self._tokens()
        start = self._start_layout()
        layout_of = _METHODS[recipe.method.kind](self, start)
        for export in recipe.export:
            self._add(
                f"export-{export.kind}",
                "export",
                f"write the smaller model as {export.kind}",
                export.model_dump() | {"layout": recipe.target.layout},
                {"layers": layout_of},
                Cost(
                    disk_bytes=self.estimate.weight_bytes(start),
                    memory_bytes=self.estimate.layer_bytes * 2,
                ),
            )
        if recipe.validation:
            self._measure()
        return Plan(tuple(self.steps))

    # --- steps ------------------------------------------------------------------------------

    def _tokens(self) -> None:
        recipe = self.recipe
        calibration, search = recipe.calibration, recipe.search
        if calibration:
            length, seed = calibration.sequence_length, calibration.seed
            windows = math.ceil(calibration.tokens / length)
            search_windows = math.ceil(search.tokens / length) if search else 0
            shared = search is not None and search.source in (None, calibration.source)
            total = windows + search_windows if shared else windows
            self._add_tokens(
                "calibration-tokens",
                "calibration.source",
                "text that the weights are fitted to",
                calibration.source,
                {"windows": windows, "length": length, "seed": seed, "skip": 0, "total": total},
            )
            if search:
                assert search.seed is not None  # settled with the recipe
                own = {"seed": search.seed, "skip": 0, "total": search_windows}
                rest = {"seed": seed, "skip": windows, "total": total}
                self._add_tokens(
                    "search-tokens",
                    "search.source",
                    "text that layouts are compared on; calibration does not see it",
                    search.source or calibration.source,
                    {"windows": search_windows, "length": length} | (rest if shared else own),
                )
        if recipe.validation and (perplexity := recipe.validation.perplexity):
            windows = math.ceil(perplexity.tokens / perplexity.sequence_length)
            self._add_tokens(
                "evaluation-tokens",
                "validate.perplexity.source",
                "text that nothing was fitted to or chosen on",
                perplexity.source,
                {
                    "windows": windows,
                    "length": perplexity.sequence_length,
                    "seed": 0,
                    "skip": 0,
                    "total": windows,
                },
            )

    def _add_tokens(
        self, name: str, key: str, why: str, source: Source, draw: dict[str, int]
    ) -> None:
        data = source.model_dump()
        if "files" in data:
            # Relative, so that a plan reads the same wherever the project lies.
            data["files"] = [os.path.relpath(path, self.base) for path in data["files"]]
        try:
            text = sources.identity(data, self.base)
        except sources.SourceError as error:
            raise RecipeProblemError(key, error.message, error.hint) from None
        params = {"source": data, "text": text, "tokenizer": self.identity, **draw}
        self._add(
            name, "tokens", why, params, {}, Cost(disk_bytes=8 * draw["windows"] * draw["length"])
        )

    def _start_layout(self) -> Layout:
        try:
            return budget_of(self.recipe, self.facts).uniform_layout()
        except InfeasibleTargetError as error:
            raise RecipeProblemError(
                "target.sparsity",
                str(error),
                hint="lower target.sparsity or target.multiple_of, or use layout: per_layer",
            ) from None

    def _tyr(self, start: Layout) -> str:
        """Rounds of supernet and search, each around the last one's winner; then resolve."""
        method, search, facts = self.recipe.method, self.recipe.search, self.facts
        assert isinstance(method, TyrMethod) and search is not None
        tokens = self._count("search-tokens")
        top = min(TOP_K, facts.vocab_size)
        self._add(
            "teacher",
            "teacher",
            "next-token distributions of the dense model",
            self.model | {"top_k": top},
            {"tokens": "search-tokens"},
            Cost(
                token_forwards=tokens,
                memory_bytes=self.estimate.teacher_bytes(tokens, top) + self.estimate.layer_bytes,
                disk_bytes=self.estimate.teacher_bytes(tokens, top),
            ),
        )
        left = search.budget.token_forwards - tokens
        if left < method.rounds * tokens:
            raise RecipeProblemError(
                "search.budget.token_forwards",
                f"search.budget.token_forwards is {search.budget.token_forwards:,}; "
                f"{method.rounds} rounds on {tokens:,} tokens take at least "
                f"{(method.rounds + 1) * tokens:,}",
                hint="raise the budget, or lower search.tokens or method.rounds",
            )
        layout_of = ""
        for number in range(1, method.rounds + 1):
            centre = self._layout_params(start) if number == 1 else None
            inputs = {"tokens": "calibration-tokens"} | ({"centre": layout_of} if layout_of else {})
            self._add(
                f"supernet-{number}",
                "supernet",
                "solve every size of every layer"
                + (" around the last winner" if layout_of else " around the uniform layout"),
                # Fitted to the dense model's activations, levels near the centre would look better
                # than they are beside the others.
                self.model
                | self._solver()
                | {"dense_target": 0.0}
                | ({"centre": centre} if centre else {})
                | self._budget(),
                inputs,
                self._walk(0.0, self.estimate.nested_bytes),
            )
            step = self._neurons(method.first_step / 2 ** (number - 1))
            share = left // method.rounds
            self._add(
                f"search-{number}",
                "search",
                f"move capacity between sublayers, {step} neurons or one attention level at a time",
                self.model
                | self._budget()
                | {
                    "offspring": method.offspring,
                    "step": step,
                    "token_forwards": share,
                    "seed": [search.seed, number],
                },
                {"supernet": f"supernet-{number}", "teacher": "teacher", "tokens": "search-tokens"},
                Cost(token_forwards=share, memory_bytes=self.estimate.nested_bytes),
            )
            layout_of = f"search-{number}"
        self._add(
            "resolve",
            "resolve",
            "fit the winner once more, layer by layer, to the inputs it really sees",
            self.model | self._solver(),
            {"tokens": "calibration-tokens", "layout": layout_of},
            self._walk(self._solver()["dense_target"], self.estimate.weight_bytes(start)),
        )
        return "resolve"

    def _uniform(self, start: Layout) -> str:
        self._add(
            "resolve",
            "resolve",
            "prune layer by layer, all alike, and refit what stays",
            self.model | self._solver() | {"layout": self._layout_params(start)},
            {"tokens": "calibration-tokens"},
            self._walk(self._solver()["dense_target"], self.estimate.weight_bytes(start)),
        )
        return "resolve"

    def _magnitude(self, start: Layout) -> str:
        self._add(
            "resolve",
            "resolve",
            "remove the units of smallest norm; nothing is refitted",
            self.model | {"solver": "magnitude", "layout": self._layout_params(start)},
            {},
            Cost(
                memory_bytes=2 * self.estimate.layer_bytes,
                disk_bytes=self.estimate.weight_bytes(start),
            ),
        )
        return "resolve"

    def _measure(self) -> None:
        checks = self.recipe.validation
        assert checks is not None
        params: dict[str, Any] = self.model | {
            "completion": checks.completion.model_dump() if checks.completion else None
        }
        inputs = {"tokens": "evaluation-tokens"} if checks.perplexity else {}
        forwards = Cost()
        if checks.perplexity:
            tokens = self._count("evaluation-tokens")
            forwards = Cost(
                token_forwards=tokens,
                memory_bytes=self.estimate.weight_bytes(dense_layout(self.facts)),
            )
        self._add("measure-dense", "measure", "judge the model as it was", params, inputs, forwards)
        exported = f"export-{self.recipe.export[0].kind}"
        self._add(
            "measure-pruned",
            "measure",
            "judge the artefact, opened from disk",
            params,
            inputs | {"artefact": exported},
            forwards,
        )

    # --- parameters and costs ---------------------------------------------------------------

    def _add(
        self,
        name: str,
        kind: str,
        why: str,
        params: Mapping[str, Any],
        inputs: Mapping[str, str],
        cost: Cost,
    ) -> None:
        fingerprints = {step.name: step.fingerprint for step in self.steps}
        read = {role: fingerprints[step] for role, step in inputs.items()}
        fingerprint = digest([kind, VERSIONS[kind], dict(params), read])
        self.steps.append(Step(name, kind, why, dict(params), dict(inputs), fingerprint, cost))

    def _solver(self) -> dict[str, Any]:
        method = self.recipe.method
        assert not isinstance(method, MagnitudeMethod)  # it solves nothing
        return {
            "solver": "least_squares",
            "damping": method.damping,
            "dense_target": method.dense_target,
        }

    def _budget(self) -> dict[str, Any]:
        target = self.recipe.target
        return {
            "sparsity": target.sparsity,
            "multiple_of": target.multiple_of,
            "tied": target.layout == "uniform",
            "exports": [export.kind for export in self.recipe.export],
        }

    @staticmethod
    def _layout_params(layout: Layout) -> list[list[int]]:
        return [[spec.query_heads, spec.kv_heads, spec.ffn] for spec in layout]

    def _walk(self, dense_target: float, disk_bytes: int) -> Cost:
        return self.estimate.walk(self._count("calibration-tokens"), dense_target, disk_bytes)

    def _count(self, name: str) -> int:
        """Tokens that an earlier step draws."""
        params = next(step for step in self.steps if step.name == name).params
        return int(params["windows"] * params["length"])

    def _neurons(self, share: float) -> int:
        """A share of the MLP's width in whole multiples of the legal step, at least one."""
        multiple = self.recipe.target.multiple_of
        return multiple * max(1, round(share * self.facts.ffn / multiple))


_METHODS: Mapping[str, Callable[[_Planner, Layout], str]] = {
    "tyr": _Planner._tyr,
    "uniform": _Planner._uniform,
    "magnitude": _Planner._magnitude,
}
