# SPDX-License-Identifier: Apache-2.0
"""Kill builds at random moments and compare what they end with: is a killed build the same build?

    python benchmarks/kills.py --kills 100 --seed 0

One build runs undisturbed. Then builds start from nothing, are killed with SIGKILL and run again
until they finish; each must leave the same files in `hf/` and the same report, but for what it
took. Exit code 1 if one did not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunec.validators.manifest import check_manifest

ROOT = Path(__file__).resolve().parent.parent

#: The quickstart on a budget of seconds: every step is there, and the walks and searches are most.
SHRUNKEN = {
    "calibration.tokens": 8192,
    "search.tokens": 2048,
    "search.budget.token_forwards": 120_000,
    "validate.perplexity.tokens": 2048,
    "validate.completion.tokens": 8,
}

#: A kill falls within this share of an undisturbed build's work after the (re)start, so that
#: builds are killed several times each, and in all of their parts.
REACH = 0.3

#: Share of the kills that fall before the first step, while Python still imports.
EARLY = 0.05


@dataclass
class Run:
    """One run of the command: how it ended, when it got to work, where it was last seen."""

    code: int = 0
    seconds: float = 0.0
    started: float = 0.0  # seconds until the first step was told of
    where: str = "start-up"
    told: list[str] = field(default_factory=list)


def run_build(output: Path, kill_early: float | None, kill_after: float | None) -> Run:
    """Run the build; kill it so many seconds after its start, or after its first step began."""
    settings = [f"{key}={value}" for key, value in SHRUNKEN.items()]
    command = [sys.executable, "-m", "prunec.compiler", "build"]
    command += [str(ROOT / "recipes" / "quickstart.yaml"), "--output", str(output)]
    command += [part for setting in settings for part in ("--set", setting)]
    run, at_work = Run(), threading.Event()
    began = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )

    def listen() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            run.told.append(line.rstrip())
            if not at_work.is_set():
                run.started = time.monotonic() - began
                at_work.set()
        at_work.set()

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        if kill_early is not None:
            process.wait(timeout=kill_early)
        elif kill_after is not None:
            at_work.wait()
            process.wait(timeout=kill_after)
        else:
            process.wait()
    except subprocess.TimeoutExpired:
        process.kill()
    run.code = process.wait()
    listener.join()
    run.seconds = time.monotonic() - began
    run.where = place(run.told)
    return run


def place(told: list[str]) -> str:
    """The kind of step that a build was in, from the last line in which it told of steps."""
    steps = [line for line in told if line.lstrip().startswith("[")]
    if not steps:
        return "start-up"
    number, name = steps[-1].lstrip().split("] ", 1)
    if steps[-1].endswith("…"):
        return name.removesuffix(" …").rstrip("-0123456789")
    done, total = number.removeprefix("[").split("/")
    return "report" if done == total else "between steps"


def outcome(output: Path) -> dict[str, str]:
    """SHA-256 of every file of the export, and of the report without what the build took."""
    report: dict[str, Any] = json.loads((output / "report" / "report.json").read_text("utf-8"))
    del report["cost"]
    files = sorted(path for path in (output / "hf").rglob("*") if path.is_file())
    contents = {str(path.relative_to(output)): path.read_bytes() for path in files}
    contents["report/report.json"] = json.dumps(report, sort_keys=True).encode()
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def wrong_with(run: Run, output: Path, expected: dict[str, str]) -> str | None:
    """What is wrong with a run that was not killed."""
    if run.code not in (0, 1):
        return f"it ended with exit code {run.code}: {' / '.join(run.told[-2:])}"
    if not (output / "manifest.json").exists():
        return "it ended without a manifest"
    found = outcome(output)
    names = found.keys() | expected.keys()
    different = sorted(name for name in names if found.get(name) != expected.get(name))
    return f"other content in {', '.join(different)}" if different else None


def print_table(kills: int, builds: int, mismatches: list[str], fell: Counter[str]) -> None:
    print(
        f"\n| kills | completed builds | mismatches |\n|---|---|---|\n| {kills} | {builds} ", end=""
    )
    print(f"| {len(mismatches)} |\n\n| killed in | kills |\n|---|---|")
    for where, count in fell.most_common():
        print(f"| {where} | {count} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100, help="kills in all  [100]")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills  [0]")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "benchmarks" / "kills", help="a folder to use"
    )
    arguments = parser.parse_args()
    shutil.rmtree(arguments.work, ignore_errors=True)
    arguments.work.mkdir(parents=True)
    rng = random.Random(arguments.seed)

    began = time.monotonic()
    undisturbed = run_build(arguments.work / "undisturbed", None, None)
    if undisturbed.code not in (0, 1):
        print("\n".join(undisturbed.told), file=sys.stderr)
        return 1
    expected = outcome(arguments.work / "undisturbed")
    work = undisturbed.seconds - undisturbed.started
    print(f"undisturbed: {undisturbed.started:.1f} s of start-up, {work:.1f} s of work", flush=True)

    output = arguments.work / "killed"
    kills = builds = here = 0
    mismatches: list[str] = []
    fell: Counter[str] = Counter()
    while kills < arguments.kills or here:
        early = after = None
        if kills < arguments.kills and rng.random() < EARLY:
            early = rng.uniform(0, undisturbed.started)
        elif kills < arguments.kills:
            after = rng.uniform(0, REACH * work)
        run = run_build(output, early, after)
        if run.code == -9:
            kills, here = kills + 1, here + 1
            fell[run.where] += 1
            # A manifest says that the build is finished: then everything has to be there.
            if (output / "manifest.json").exists() and (wrong := check_manifest(output)):
                mismatches.append(f"kill {kills}: a manifest, though {wrong[0]}")
            print(f"kill {kills:3} in {run.where} after {run.seconds:.1f} s", flush=True)
            continue
        builds += 1
        if problem := wrong_with(run, output, expected):
            mismatches.append(f"build {builds}: {problem}")
        verdict = "differs: " + problem if problem else "identical"
        print(f"build {builds} finished after {here} kills: {verdict}", flush=True)
        shutil.rmtree(output)
        here = 0
    print_table(kills, builds, mismatches, fell)
    print(f"\n{time.monotonic() - began:.0f} s in all")
    for mismatch in mismatches:
        print(f"MISMATCH {mismatch}")
    return 1 if mismatches else 0


if __name__ == "__main__":
    sys.exit(main())
