# SPDX-License-Identifier: Apache-2.0
"""The verdict on a whole report: one word, one sentence, one headline."""

from __future__ import annotations

from typing import Literal

from prunec.validators.results import Report

Verdict = Literal["passed", "failed", "inconclusive", "measured"]


def verdict(report: Report) -> Verdict:
    """`inconclusive` where no gate failed, but some could not be settled and must be; `measured`
    where there was none to judge by."""
    if not report.gates:
        return "measured"
    if report.passed:
        return "passed"
    return "failed" if any(gate.verdict == "failed" for gate in report.gates) else "inconclusive"


def verdict_sentence(report: Report) -> str:
    """How many gates did what, and what follows from those that settled nothing."""
    gates = report.gates
    if not gates:
        return "The recipe sets no gates: nothing was judged."
    counts = {
        word: sum(gate.verdict == word for gate in gates)
        for word in ("passed", "failed", "inconclusive")
    }
    if counts["passed"] == len(gates):
        return "The gate passed." if len(gates) == 1 else f"All {len(gates)} gates passed."
    said = ", ".join(f"{number} {word}" for word, number in counts.items() if number)
    text = f"Of {len(gates)} {'gate' if len(gates) == 1 else 'gates'}, {said}."
    open_gates = [gate for gate in gates if gate.verdict == "inconclusive"]
    if open_gates:
        lets = all(gate.passed for gate in open_gates)
        text += f" The recipe {'lets' if lets else 'does not let'} inconclusive gates pass."
    return text


def headline(report: Report) -> str:
    """The verdict first, then what was done: "Passed: quickstart, 50.0 % of … removed"."""
    return f"{verdict(report).capitalize()}: {report.recipe}, {removed(report)}"


def removed(report: Report) -> str:
    """How much smaller the model is."""
    if not report.counted:
        return "a model whose projections are not known one by one"
    share = f"{abs(report.sparsity):.1%}".replace("%", " %")
    if report.sparsity < 0:
        return f"{share} more prunable parameters than the dense model"
    return f"{share} of the prunable parameters removed"
