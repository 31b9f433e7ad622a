# SPDX-License-Identifier: Apache-2.0
"""The sections of a report in the order in which they are read: quality, serving, build."""

from __future__ import annotations

from prunec.validators.blocks import Section
from prunec.validators.results import Report
from prunec.validators.sections_of_build import (
    completions,
    cost,
    layers,
    origin,
    places,
    recipe,
    search,
)
from prunec.validators.sections_of_quality import comparison, gates, tasks, texts
from prunec.validators.sections_of_recovery import recovery
from prunec.validators.sections_of_serving import footprint, parity, speed
from prunec.validators.sections_of_tuning import tuning


def sections(report: Report) -> list[Section]:
    """All that the report has anything to say in."""
    found = (
        comparison(report),
        gates(report),
        layers(report),
        tuning(report),
        search(report),
        recovery(report),
        texts(report),
        tasks(report),
        speed(report),
        footprint(report),
        parity(report),
        completions(report),
        cost(report),
        places(report),
        recipe(report),
        origin(report),
    )
    return [section for section in found if section is not None]
