# SPDX-License-Identifier: Apache-2.0
"""How the settings of a method were found: what was chosen, how far it is ahead, what it took."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from prunec.validators.blocks import Block, Column, Figure, Paragraph, Section, Table, table
from prunec.validators.results import Report, TrialResult, TuningResult
from prunec.validators.tuned_settings import in_words, side_by_side
from prunec.validators.units import duration, number

_SAMPLERS = {"tpe": "TPE", "random": "random search"}
_STATES = {
    "complete": "measured in full",
    "pruned": "stopped early",
    "failed": "failed",
    "repeated": "repeated earlier settings",
}
_BEST = 5  # trials that a table shows


def tuning(report: Report) -> Section | None:
    """What was chosen and against what, what a trial took; the best trials."""
    found = report.tuning
    if found is None:
        return None
    said: list[Block] = [Figure("tuning", table=_best_table(found), summary="The best trials")]
    said.append(Paragraph(tuning_note(found)))
    if chosen := chosen_table(found):
        said.append(chosen)
    if found.importances:
        said.append(
            Paragraph(
                "Importance: the share that a setting by itself has in what tells the best trials "
                "from the others."
            )
        )
    said.append(Paragraph(_counts(found)))
    if spent := _cost(found):
        said.append(Paragraph(spent))
    return Section("Tuning", tuple(said))


def tuning_note(found: TuningResult) -> str:
    """The best value beside what chance had found, in a sentence."""
    tried = len(found.trials)
    how = f"{_SAMPLERS.get(found.sampler, found.sampler)} in {tried} {_trials(tried)}"
    best = next((trial for trial in found.trials if trial.number == found.best), None)
    if best is None or not _known(best):
        return f"Settings were looked for by {how}; none could be measured."
    unit = ", nats per token" if found.objective == "divergence" else ""
    least = min(filter(_known, found.trials), key=lambda trial: (trial.value, trial.number))
    text = (
        f"Settings were found by {how}. {found.objective.capitalize()} on text that no trial was "
        f"calibrated on{unit}: {number(least.value, 4)} (trial {least.number})"
    )
    beside = []
    first = values(found.trials[: found.startup])
    if first and found.startup < tried:
        before = f"{found.startup} {_trials(found.startup)} before the sampler learned"
        beside.append(f"{number(min(first), 4)} the best of the {before}")
    everything = values(found.trials)
    if len(everything) > 2:
        beside.append(f"{number(median(everything), 4)} the median of all")
    text = f"{text}; {', '.join(beside)}." if beside else f"{text}."
    if not found.finalists:
        return text
    full = ", ".join(f"trial {one.number} {number(one.value, 4)}" for one in found.finalists)
    return f"{text} The best were pruned in full, layer by layer: {full}; trial {found.best} it is."


def chosen_table(found: TuningResult) -> Table | None:
    """The settings of the trial that was taken, in words."""
    best = next((trial for trial in found.trials if trial.number == found.best), None)
    if best is None or not best.settings:
        return None
    columns = (Column("setting"), Column("chosen"))
    return table("The settings that were chosen", columns, list(in_words(best.settings).items()))


def values(trials: Sequence[TrialResult]) -> list[float]:
    """The objective of every trial that was measured in full."""
    return [trial.value for trial in trials if _known(trial) and trial.value is not None]


def _known(trial: TrialResult) -> bool:
    """Whether the trial's value is of the whole held-out text: one that stopped early has none."""
    full = trial.state in ("complete", "repeated")
    return full and trial.value is not None and math.isfinite(trial.value)


def _counts(found: TuningResult) -> str:
    counts = [
        f"{count} {words}"
        for state, words in _STATES.items()
        if (count := sum(trial.state == state for trial in found.trials))
    ]
    if len(counts) == 1:
        return f"All trials: {counts[0].partition(' ')[2]}."
    return f"Of {len(found.trials)} trials, {', '.join(counts)}."


def _cost(found: TuningResult) -> str:
    """What trials took, and what they would have taken on statistics of their own."""
    ran = [trial for trial in found.trials if trial.state != "repeated"]
    if not ran:
        return ""
    seconds = median(trial.seconds for trial in ran)
    tokens = round(median(trial.token_forwards for trial in ran))
    text = (
        f"A trial took {duration(seconds)} and {tokens:,} token-forwards (medians), all "
        f"of them {duration(sum(trial.seconds for trial in ran))} and "
        f"{sum(trial.token_forwards for trial in ran):,} token-forwards."
    )
    if not found.collected:
        return text
    return (
        f"{text} The statistics that all trials share took {found.collected:,} token-forwards, "
        "once."
    )


def _best_table(found: TuningResult) -> Table:
    """A column a trial, the best first: there are more settings than fit beside each other."""
    measured = [trial for trial in found.trials if _known(trial) and trial.state != "repeated"]
    best = sorted(measured, key=lambda trial: (trial.value, trial.number))[:_BEST]
    rows = [(found.objective, *(number(trial.value, 4) for trial in best))]
    rows += side_by_side([trial.settings for trial in best])
    columns = (Column(""), *(Column(f"trial {trial.number}", "number") for trial in best))
    return table("The best trials", columns, rows)


def _trials(count: int) -> str:
    return "trial" if count == 1 else "trials"
