# SPDX-License-Identifier: Apache-2.0
"""Tens of thousands of damaged recipes and checkpoints: each is taken, or refused in one sentence.

    python benchmarks/fuzz.py --examples 20000 --seed 0

A finding is anything else: another exception, a minute without an answer, a file written, a
connection. It is kept in the folder for findings with its traceback. Exit code 1 if there is one.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import fuzzing

ROOT = Path(__file__).resolve().parent.parent


def recipe_example(folder: Path, draw: random.Random) -> Callable[[], str]:
    path = folder / "recipe.yaml"
    path.write_bytes(fuzzing.recipe_bytes(draw))
    return lambda: fuzzing.try_recipe(path)


def checkpoint_example(folder: Path, draw: random.Random) -> Callable[[], str]:
    fuzzing.damage_checkpoint(folder / "damaged", draw)
    return lambda: fuzzing.try_checkpoint(folder / "damaged")


def run(
    what: str,
    example: Callable[[Path, random.Random], Callable[[], str]],
    arguments: argparse.Namespace,
) -> int:
    """How many findings there were; the same error at the same line counts once."""
    ends: Counter[str] = Counter()
    seen: set[str] = set()
    began, slowest = time.monotonic(), 0.0
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        fuzzing.make_folder(folder)
        for number in range(arguments.examples):
            attempt = example(folder, random.Random(f"{what} {arguments.seed} {number}"))
            start = time.monotonic()
            try:
                with fuzzing.nothing_written():
                    ends[attempt()] += 1
            except Exception as error:  # whatever comes out is what is sought
                ends["findings"] += 1
                last = traceback.extract_tb(error.__traceback__)[-1]
                place = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
                if place not in seen:
                    seen.add(place)
                    kept = arguments.findings / f"{what}-{arguments.seed}-{number}"
                    shutil.copytree(folder, kept, dirs_exist_ok=True)
                    (kept / "traceback.txt").write_text(traceback.format_exc(), "utf-8")
                    print(f"finding: {place}: {str(error)[:200]} (kept in {kept})", flush=True)
            slowest = max(slowest, time.monotonic() - start)
    taken = ", ".join(f"{count:,} {end}" for end, count in sorted(ends.items()))
    seconds = time.monotonic() - began
    print(f"{arguments.examples:,} {what}s: {taken}; {seconds:.0f} s, slowest {slowest:.2f} s")
    return len(seen)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--examples", type=int, default=20_000, help="of each kind  [20000]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["recipe", "checkpoint"])
    parser.add_argument(
        "--findings", type=Path, default=ROOT / "build" / "benchmarks" / "fuzz", help="a folder"
    )
    arguments = parser.parse_args()
    kinds = {"recipe": recipe_example, "checkpoint": checkpoint_example}
    wanted = [arguments.only] if arguments.only else list(kinds)
    return 1 if sum(run(kind, kinds[kind], arguments) for kind in wanted) else 0


if __name__ == "__main__":
    sys.exit(main())
