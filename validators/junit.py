# SPDX-License-Identifier: Apache-2.0
"""junit.xml: the gates as test cases, which CI systems show by name.

The common form (https://github.com/testmoapp/junitxml): `testsuites`, a `testsuite`, `testcase`s.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prunec.validators.results import Report

# XML 1.0, production 2: everything else cannot be written, not even escaped.
_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(report: Report) -> str:
    """The text of junit.xml, in UTF-8: one case for each gate, or one that passes without gates.

    What does not pass is a failure, of type `failed` or `inconclusive`; what passes though it is
    inconclusive says so in its output.
    """
    cases = [_case(report.recipe, gate.name) for gate in report.gates]
    for case, gate in zip(cases, report.gates, strict=True):
        message = _legal(gate.message)
        if not gate.passed:
            ET.SubElement(case, "failure", message=message, type=gate.verdict).text = message
        elif gate.verdict != "passed":
            ET.SubElement(case, "system-out").text = message
    if not cases:
        cases = [_case(report.recipe, "measured")]
    counts = {
        "name": "prunec",
        "tests": str(len(cases)),
        "failures": str(sum(not gate.passed for gate in report.gates)),
        "errors": "0",
        "skipped": "0",
        "time": f"{report.cost.seconds:.3f}",
    }
    root = ET.Element("testsuites", counts)
    suite = ET.SubElement(root, "testsuite", counts)
    properties = ET.SubElement(suite, "properties")
    stated = {"prunec_version": report.prunec_version}
    stated |= {f"hardware.{key}": str(value) for key, value in sorted(report.hardware.items())}
    for key, value in stated.items():
        ET.SubElement(properties, "property", name=_legal(key), value=_legal(value))
    suite.extend(cases)
    ET.indent(root)
    # Encoded and decoded, since only so the declaration names UTF-8 whatever the locale is.
    data: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return data.decode() + "\n"


def _case(recipe: str, name: str) -> ET.Element:
    # Judging takes no time; some readers want to see it said.
    return ET.Element("testcase", classname=_legal(recipe), name=_legal(name), time="0")


def _legal(text: str) -> str:
    return _ILLEGAL.sub("\ufffd", text)
