# SPDX-License-Identifier: Apache-2.0
"""What an artefact tells of itself: where it comes from, and what its files hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Provenance:
    """The recipe as its author wrote it, and what the build made of it.

    Nothing here may depend on the machine or the hour: the same build writes the same bytes.
    """

    recipe_text: str
    plan: Mapping[str, Any]
    source: str
    """The dense model, as the recipe names it."""
    method: str
    """The method's kind, also a tag of the model card."""
    calibration: str | None
    """One phrase: which text, how many tokens, which seed; None where no text was read."""
    hub_id: str | None = None
    """The dense model's id on the Hub, if it has one."""
    commit: str | None = None
    """Which commit of it was read."""
    recovery: str | None = None
    """One phrase: how it was trained back, on which text; None where it was not."""


@dataclass(frozen=True, slots=True)
class Written:
    """What an artefact holds, counted from the headers of its files."""

    parameters: int
    prunable_parameters: int
    weight_bytes: int
