# SPDX-License-Identifier: Apache-2.0
"""Lets the tests import what `benchmarks/fuzz.py` draws its inputs with."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
