# SPDX-License-Identifier: Apache-2.0
"""What a model card says of what was measured: the verdict, the numbers, how to have them again."""

from __future__ import annotations

from prunec.validators.blocks import Block, Paragraph, Section
from prunec.validators.escaping import fenced, sentence
from prunec.validators.markdown import markdown_blocks
from prunec.validators.results import Report
from prunec.validators.sections_of_quality import comparison, tasks, texts
from prunec.validators.sections_of_recovery import recovery_notes
from prunec.validators.sections_of_serving import footprint, parity, speed
from prunec.validators.sections_of_tuning import chosen_table, tuning_note
from prunec.validators.verdicts import verdict, verdict_sentence

#: The section's heading.
TITLE = "Measured"


def measured_section(report: Report) -> str:
    """The section's text, in Markdown, without its heading."""
    parts = [f"**{verdict(report).capitalize()}.** {verdict_sentence(report)}"]
    parts += ["\n".join(f"- {gate.verdict}: {sentence(gate.message)}" for gate in report.gates)]
    for make in (comparison, _tuning, _recovery, texts, tasks, speed, footprint, parity):
        if section := make(report):
            parts += [f"### {section.title}", markdown_blocks(section.blocks)]
    if report.speeds:  # all else is the same on every machine
        said = "; ".join(f"{name} {value}" for name, value in report.hardware.items())
        parts.append(sentence(f"Measured on: {said}."))
    parts += ["To make and measure it again:", fenced(report.command)]
    return "\n\n".join(part for part in parts if part)


def _tuning(report: Report) -> Section | None:
    """What was chosen; the report has the trials."""
    if (found := report.tuning) is None:
        return None
    chosen = chosen_table(found)
    said: list[Block] = [Paragraph(tuning_note(found))]
    return Section("Tuning", (*said, chosen) if chosen else tuple(said))


def _recovery(report: Report) -> Section | None:
    if (found := report.recovery) is None:
        return None
    return Section("Recovery", tuple(map(Paragraph, recovery_notes(found))))
