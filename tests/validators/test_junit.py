# SPDX-License-Identifier: Apache-2.0
"""junit.xml as CI systems read it: counts, names, failures, properties."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from prunec.validators.gates import Gate, judge
from prunec.validators.junit import junit_xml
from prunec.validators.measurements import Estimate
from prunec.validators.results import Cost, ModelSize, Report


def gate(name: str, value: float, *, lets: bool = False, error: str | None = None) -> Gate:
    estimate = Estimate(value, value - 0.1, value + 0.1, 64, "windows")
    return judge(name, "ratio", estimate, 1.5, "<=", inconclusive_passes=lets, error=error)


def report(*gates: Gate, recipe: str = "quickstart", hardware: str = "a CPU") -> Report:
    size = ModelSize(2, 1, 4, 8)
    return Report(
        "0.1.0",
        recipe,
        "tyr",
        0,
        size,
        size,
        [],
        [],
        Cost(1, 61.5, 1),
        gates=gates,
        hardware={"cpu": hardware},
    )


def read(text: str) -> tuple[ET.Element, dict[str, ET.Element]]:
    """The suite, and its cases by name; the counts of suite and file are those of the cases."""
    root = ET.fromstring(text.encode())
    assert root.tag == "testsuites"
    [suite] = root
    cases = suite.findall("testcase")
    for element in (root, suite):
        assert element.get("tests") == str(len(cases))
        assert element.get("failures") == str(len(suite.findall("testcase/failure")))
        assert (element.get("errors"), element.get("skipped")) == ("0", "0")
        assert float(element.get("time", "")) == 61.5
    return suite, {case.get("name", ""): case for case in cases}


def test_each_gate_is_a_case_and_fails_where_it_does_not_pass() -> None:
    gates = (
        gate("perplexity.max_ratio", 1.2),
        gate("elsewhere.prose.max_ratio", 1.8),
        gate("tasks.names.max_drop", 1.45),
        gate("speed.vllm.decode.batch_1", 1.45, lets=True),
        gate("size.max_bytes", 1.2, error="no such folder"),
    )
    suite, cases = read(junit_xml(report(*gates)))
    assert list(cases) == [each.name for each in gates]
    assert {case.get("classname") for case in cases.values()} == {"quickstart"}
    assert suite.get("name") == "prunec"

    found = [
        {child.tag: (child.get("type"), child.text) for child in case} for case in cases.values()
    ]
    assert found == [
        {},
        {"failure": ("failed", gates[1].message)},
        {"failure": ("inconclusive", gates[2].message)},
        {"system-out": (None, gates[3].message)},
        {"failure": ("failed", gates[4].message)},
    ]
    failures = suite.findall("testcase/failure")
    assert [failure.get("message") for failure in failures] == [f.text for f in failures]


def test_what_measured_stands_in_the_properties_before_the_cases() -> None:
    suite, _ = read(junit_xml(report(gate("a", 1.2))))
    assert [child.tag for child in suite] == ["properties", "testcase"]
    properties = {p.get("name"): p.get("value") for p in suite.findall("properties/property")}
    assert properties == {"prunec_version": "0.1.0", "hardware.cpu": "a CPU"}


def test_without_gates_there_is_a_case_that_passes() -> None:
    _, cases = read(junit_xml(report()))
    assert list(cases) == ["measured"]
    assert len(cases["measured"]) == 0


def test_characters_that_xml_cannot_hold_are_replaced() -> None:
    odd = "\x00a\x1b[2J<&\"'>\ud800\ufffe…\U0001f600"
    kept = "\ufffda\ufffd[2J<&\"'>\ufffd\ufffd…\U0001f600"
    text = junit_xml(report(gate(odd, 1.2, error=odd), recipe=odd, hardware=odd))
    suite, cases = read(text)
    assert cases[kept].get("classname") == kept
    assert kept in str(cases[kept][0].text)
    assert kept in [p.get("value") for p in suite.findall("properties/property")]


def test_it_says_utf_8_whatever_the_locale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("locale.getencoding", lambda: "latin-1")
    text = junit_xml(report(gate("a", 1.8)))
    assert text.startswith("<?xml version='1.0' encoding='utf-8'?>\n<testsuites ")
    (tmp_path / "junit.xml").write_text(text, encoding="utf-8")
    [failure] = ET.parse(tmp_path / "junit.xml").iter("failure")
    assert "95 %: 1.70 … 1.90" in str(failure.text)
