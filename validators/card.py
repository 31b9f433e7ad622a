# SPDX-License-Identifier: Apache-2.0
"""What a model card says of what was measured: the verdict, the numbers, how to have them again."""

from __future__ import annotations

from prunec.validators.markdown import markdown_blocks
from prunec.validators.results import Report
from prunec.validators.sections_of_quality import comparison, tasks, texts
from prunec.validators.sections_of_serving import footprint, parity, speed
from prunec.validators.verdicts import verdict, verdict_sentence

#: The section's heading.
TITLE = "Measured"


def measured_section(report: Report) -> str:
    """The section's text, in Markdown, without its heading."""
    parts = [f"**{verdict(report).capitalize()}.** {verdict_sentence(report)}"]
    parts += ["\n".join(f"- {gate.verdict}: {gate.message}" for gate in report.gates)]
    for make in (comparison, texts, tasks, speed, footprint, parity):
        if section := make(report):
            parts += [f"### {section.title}", markdown_blocks(section.blocks)]
    if report.speeds:  # all else is the same on every machine
        said = "; ".join(f"{name} {value}" for name, value in report.hardware.items())
        parts.append(f"Measured on: {said}.")
    parts.append(f"To make and measure it again:\n\n```\n{report.command}\n```")
    return "\n\n".join(part for part in parts if part)
