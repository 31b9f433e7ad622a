# SPDX-License-Identifier: Apache-2.0
"""How each kind of step of a plan is carried out: from the store, through a pass, to the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prunec.compiler.plan import Step
from prunec.compiler.steps.chosen import run_chosen
from prunec.compiler.steps.context import Context, Progress, Summary
from prunec.compiler.steps.export import run_dense_export, run_export
from prunec.compiler.steps.finalists import run_finalists
from prunec.compiler.steps.generate import run_generate
from prunec.compiler.steps.measures import (
    run_artefact,
    run_footprint,
    run_measure,
    run_parity,
    run_speed,
    run_tasks,
)
from prunec.compiler.steps.mixture import run_mixture
from prunec.compiler.steps.published import run_layers, run_published_search, run_published_supernet
from prunec.compiler.steps.recover import run_distributions, run_recover
from prunec.compiler.steps.search import run_search
from prunec.compiler.steps.statistics import run_statistics
from prunec.compiler.steps.teacher import run_teacher
from prunec.compiler.steps.tokens import run_tokens
from prunec.compiler.steps.tune import run_tune
from prunec.compiler.steps.walks import run_resolve, run_supernet
from prunec.compiler.store import Entry

RUNNERS: Mapping[str, Callable[[Context, Step, Entry, Progress], Summary]] = {
    "tokens": run_tokens,
    "generate": run_generate,
    "mixture": run_mixture,
    "statistics": run_statistics,
    "tune": run_tune,
    "finalists": run_finalists,
    "chosen": run_chosen,
    "teacher": run_teacher,
    "supernet": run_supernet,
    "search": run_search,
    "resolve": run_resolve,
    "published-supernet": run_published_supernet,
    "published-search": run_published_search,
    "published-layers": run_layers,
    "distributions": run_distributions,
    "recover": run_recover,
    "export": run_export,
    "dense-export": run_dense_export,
    "artefact": run_artefact,
    "measure": run_measure,
    "parity": run_parity,
    "tasks": run_tasks,
    "speed": run_speed,
    "footprint": run_footprint,
}
