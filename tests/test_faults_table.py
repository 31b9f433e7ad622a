# SPDX-License-Identifier: Apache-2.0
"""Every fault in FAULTS.md names a test that there is."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_every_fault_has_its_test() -> None:
    rows = (ROOT / "FAULTS.md").read_text(encoding="utf-8").splitlines()
    table = [row for row in rows if row.startswith("| ")][2:]
    named = [re.findall(r"`(test_\w+)` \|$", row) for row in table]
    assert len(table) > 20 and all(len(names) == 1 for names in named)
    sources = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("tests/**/*.py"))
    there = set(re.findall(r"^def (test_\w+)", sources, flags=re.MULTILINE))
    assert {name for [name] in named} <= there
