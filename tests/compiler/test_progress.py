# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io

import pytest
from rich.console import Console

from prunec.compiler.progress import LINES_APART, Narrator


class Clock:
    """Stands still until it is told to go on."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_terminal_sees_the_best_so_far_and_the_time_left(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PRUNEC_NO_PROGRESS", raising=False)
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    with Narrator(console, clock).step("[6/14] search-1") as progress:
        progress(100_000, 600_000, "token-forwards, divergence 0.3082")
        clock.now = 100.0
        progress(350_000, 600_000, "token-forwards, divergence 0.2278")
    [line] = {line for line in shown(console).splitlines() if "0.2278" in line}
    assert "[6/14] search-1" in line
    assert "350 k/600 k token-forwards, divergence 0.2278 1:40, 1:40 left" in line


def test_a_log_sees_a_line_now_and_then(clock: Clock) -> None:
    console = Console(file=io.StringIO(), width=120)
    with Narrator(console, clock).step("[5/14] supernet-1") as progress:
        for layer in range(1, 9):
            clock.now += 0.4 * LINES_APART
            progress(layer, 8, "layers")
    assert shown(console).split("\n") == [
        "  [5/14] supernet-1 …",
        "  [5/14] supernet-1: 3/8 layers",
        "  [5/14] supernet-1: 6/8 layers",
        "",
    ]
