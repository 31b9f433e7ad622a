# SPDX-License-Identifier: Apache-2.0
"""What benchmarks of contestants have in common: builds by seed, results on disk, a table.

Every result is kept in `results.json` of the work folder under all that decides it, and not
measured again. Builds of a seed share a store, so that what contestants have in common is made
once; CPU seconds say what a build took beyond that.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from builds import QUICKSTART, ROOT, Build, BuildFailedError, build, spread
from texts import judged_on_prose, listed, prose

from prunec.compiler.plan import digest

#: What judges: 32,768 tokens of code and as many of prose. Nothing else of the recipe is measured.
JUDGED = (
    judged_on_prose(32_768),
    "validate.perplexity={source: {kind: python_stdlib}, tokens: 32768}",
    "validate.completion=null",
)


@dataclass(frozen=True)
class Contestant:
    """settings: `--set` values beyond the recipe's; seeded: whether a seed changes anything;
    searches: whether its recipe has a `search` section."""

    settings: tuple[str, ...]
    seeded: bool = True
    searches: bool = False

    @property
    def reads(self) -> bool:
        """Whether it has a `calibration` section."""
        return "calibration=null" not in self.settings


@dataclass(frozen=True)
class Result:
    """What one build reported; losses in nats per token above the dense model.

    code, prose: excess loss on Python modules and on the prose of `texts.py`
    held_out: what the build itself judged by on its search or held-out text, None without one
    """

    model: str
    sparsity: float
    contestant: str
    seed: int | None
    code: float
    prose: float
    code_divergence: float
    prose_divergence: float
    held_out: float | None
    token_forwards: int
    cpu_seconds: float
    details: dict[str, Any]


def parser_of(doc: str | None, name: str, sparsity: Sequence[float]) -> argparse.ArgumentParser:
    """The options that all contests have. `doc`: the script's docstring."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--sparsity", type=float, nargs="+", default=list(sparsity))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--calibration-tokens", type=int, default=32_768)
    parser.add_argument("--only", nargs="+", default=[], metavar="CONTESTANT")
    parser.add_argument("--threads", type=int, help="of a build; torch's own choice by default")
    parser.add_argument("--model", type=Path, default=ROOT / "examples" / "pytiny")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "benchmarks" / name, help="a folder"
    )
    parser.add_argument("--table", action="store_true", help="measure nothing, print what there is")
    return parser


def run(
    arguments: argparse.Namespace,
    contestants: Mapping[str, Contestant],
    details: Callable[[dict[str, Any]], dict[str, Any]] = lambda report: {},
) -> list[Result]:
    """All results, measured where they are missing. `details`: what to keep of a report."""
    if unknown := {*arguments.only} - {*contestants}:
        sys.exit(f"--only: no {', '.join(sorted(unknown))} among {', '.join(contestants)}")
    file = arguments.work / "results.json"
    known: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    wanted = [
        (sparsity, seed, name, contestant)
        for seed in arguments.seeds
        for sparsity in arguments.sparsity
        for name, contestant in contestants.items()
        if (not arguments.only or name in arguments.only)
        and (contestant.seeded or seed == arguments.seeds[0])
    ]
    results = []
    for number, (sparsity, seed, name, contestant) in enumerate(wanted, start=1):
        settings = (
            f"model.source={arguments.model.resolve()}",
            *contestant.settings,
            f"target.sparsity={sparsity:g}",
            *((f"calibration.tokens={arguments.calibration_tokens}",) if contestant.reads else ()),
            *JUDGED,
            *((f"calibration.seed={seed}",) if contestant.seeded else ()),
            *((f"search.seed={seed}",) if contestant.searches else ()),
        )
        key = _key(arguments.model.name, settings)
        label = f"{arguments.model.name}-{sparsity:g}-{seed}-{name}"
        if key not in known and arguments.table:
            continue
        if key not in known:
            began = time.monotonic()
            try:
                place = arguments.work / f"{arguments.model.name}-{seed}"
                made = build(QUICKSTART, place, settings, threads=arguments.threads)
            except BuildFailedError as error:
                sys.exit(str(error))
            result = _result(arguments.model.name, sparsity, name, seed, made, details)
            known[key] = asdict(result)
            file.write_text(json.dumps(known, indent=1) + "\n", "utf-8")
            print(
                f"[{number}/{len(wanted)}] {label}: excess loss {result.code:.4f} on code, "
                f"{result.prose:.4f} on prose ({time.monotonic() - began:.0f} s)",
                file=sys.stderr,
                flush=True,
            )
        results.append(Result(**known[key]))
    return results


def _key(model: str, settings: Sequence[str]) -> str:
    """What decides a result, wherever the project lies and whatever packages the prose is of."""
    named = [s for s in settings if not s.startswith("model.source=")]
    for half, files in zip(("fitting", "judging"), prose(), strict=True):
        named = [s.replace(listed(files), f"{half} prose") for s in named]
    return digest([model, named])[:20]


def _result(
    model: str,
    sparsity: float,
    name: str,
    seed: int,
    made: Build,
    details: Callable[[dict[str, Any]], dict[str, Any]],
) -> Result:
    report = made.report
    code, prose = report["perplexity"], report["elsewhere"]["prose"]
    tuning, recovery, search = report["tuning"], report["recovery"], report["search"]
    held_out = None
    if search:
        held_out = search["divergence"]["winner"]
    if tuning:
        held_out = min(t["value"] for t in tuning["trials"] if t["state"] == "complete")
    if recovery:
        held_out = recovery["after"]
    return Result(
        model=model,
        sparsity=sparsity,
        contestant=name,
        seed=seed,
        code=math.log(code["ratio"]["value"]),
        prose=math.log(prose["ratio"]["value"]),
        code_divergence=code["divergence"]["value"],
        prose_divergence=prose["divergence"]["value"],
        held_out=held_out,
        token_forwards=report["cost"]["token_forwards"],
        cpu_seconds=made.cpu_seconds,
        details=details(report),
    )


def table(results: Sequence[Result]) -> str:
    """One row for each contestant at each sparsity: mean ± standard deviation over seeds."""
    lines = [
        "| sparsity | contestant | excess loss, code | excess loss, prose | divergence, code "
        "| divergence, prose | token-forwards | CPU seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for sparsity in dict.fromkeys(result.sparsity for result in results):
        at = [result for result in results if result.sparsity == sparsity]
        for name in dict.fromkeys(result.contestant for result in at):
            rows = [result for result in at if result.contestant == name]
            columns = ("code", "prose", "code_divergence", "prose_divergence")
            cells = [f"{sparsity:.1%}", name]
            cells += [spread([getattr(row, column) for row in rows], 4) for column in columns]
            cells.append(f"{statistics.fmean(row.token_forwards for row in rows):,.0f}")
            cells.append(f"{statistics.fmean(row.cpu_seconds for row in rows):.0f}")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
