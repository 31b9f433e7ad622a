# SPDX-License-Identifier: Apache-2.0
"""Kill builds at random moments and compare what they end with: is a killed build the same build?

    python benchmarks/kills.py --kills 100 --seed 0
    python benchmarks/kills.py --kills 1000 --small --forked      # a kill every few seconds

One build runs undisturbed. Then builds start from nothing, are killed with SIGKILL and run again
until they finish; each must leave the same files in `hf/` and the same report, but for what it
took. Exit code 1 if one did not. With `--forked` the imports, in which nothing can be lost, are
made once, and every build is a fork of the process that made them.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
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

#: A build of seconds, for many kills.
SMALL = SHRUNKEN | {
    "calibration.tokens": 2048,
    "calibration.sequence_length": 128,
    "search.tokens": 512,
    "search.budget.token_forwards": 12_000,
    "validate.perplexity.tokens": 1024,
    "validate.perplexity.sequence_length": 128,
    "validate.perplexity.max_ratio": 1000.0,
    "validate.completion.tokens": 2,
}

#: A kill falls within this share of an undisturbed build's work after the (re)start, so that
#: builds are killed several times each, and in all of their parts.
REACH = 0.3

#: Kills of one build. The report is made in one go: where it is most of the work, kills that all
#: fall into it would have no end.
MOST = 12

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


class Forked:
    """The command in a fork of this process, as much of a Popen as is needed."""

    def __init__(self, arguments: Sequence[str]) -> None:
        reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reading)
            os.dup2(writing, 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os._exit(_call(arguments))
        os.close(writing)
        self.stderr = os.fdopen(reading, encoding="utf-8")

    def wait(self, timeout: float | None = None) -> int:
        due = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() >= due:
                raise subprocess.TimeoutExpired("fork", timeout or 0.0)
            time.sleep(0.002)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def _call(arguments: Sequence[str]) -> int:
    from prunec.compiler import cli

    sys.argv = ["prunec", *arguments]
    try:
        cli.main()
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 3
    except BaseException:
        traceback.print_exc()
        code = 3
    else:
        code = 0
    sys.stderr.flush()
    return code


def import_all() -> None:
    """What a build imports, so that forks have it. No thread may be started here."""
    os.environ |= {"OMP_NUM_THREADS": "1", "PRUNEC_NO_PROGRESS": "1"}
    for module in ("build_command", "driver", "cli", "subject", "planned", "store"):
        importlib.import_module(f"prunec.compiler.{module}")
    for module in ("tables", "report", "loading", "pictures"):
        importlib.import_module(f"prunec.validators.{module}")
    importlib.import_module("prunec.exporters.hf")


def run_build(
    output: Path,
    kill_early: float | None,
    kill_after: float | None,
    settings: Mapping[str, object],
    forked: bool,
) -> Run:
    """Run the build; kill it so many seconds after its start, or after its first step began."""
    command = ["build", str(ROOT / "recipes" / "quickstart.yaml"), "--output", str(output)]
    command += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    run, at_work = Run(), threading.Event()
    began = time.monotonic()
    process: Any = (
        Forked(command)
        if forked
        else subprocess.Popen(
            [sys.executable, "-m", "prunec.compiler", *command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
    )

    def listen() -> None:
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
            run.code = process.wait(timeout=kill_early)
        elif kill_after is not None:
            at_work.wait()
            run.code = process.wait(timeout=kill_after)
        else:
            run.code = process.wait()
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
    """SHA-256 of every file of the export, and of the report without what the build took and how
    busy the machine was."""
    report: dict[str, Any] = json.loads((output / "report" / "report.json").read_text("utf-8"))
    del report["cost"], report["hardware"]["load"]
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
    parser.add_argument("--small", action="store_true", help="a build of seconds")
    parser.add_argument("--forked", action="store_true", help="import once, fork for every build")
    arguments = parser.parse_args()
    settings, forked = SMALL if arguments.small else SHRUNKEN, arguments.forked
    if forked:
        import_all()
    shutil.rmtree(arguments.work, ignore_errors=True)
    arguments.work.mkdir(parents=True)
    rng = random.Random(arguments.seed)

    began = time.monotonic()
    undisturbed = run_build(arguments.work / "undisturbed", None, None, settings, forked)
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
        due = kills < arguments.kills and here < MOST
        if due and rng.random() < EARLY:
            early = rng.uniform(0, undisturbed.started)
        elif due:
            after = rng.uniform(0, REACH * work)
        run = run_build(output, early, after, settings, forked)
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
