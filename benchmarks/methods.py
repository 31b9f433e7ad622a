# SPDX-License-Identifier: Apache-2.0
"""Compare the methods on one recipe: what does the search gain, and what does refitting?

    python benchmarks/methods.py --sparsity 0.25 0.375 0.5 --seeds 0 1 2

Builds `tyr`, `uniform` and `magnitude` at every sparsity, the first two with every seed (of the
calibration text and of the search), and prints a Markdown table of perplexity on the evaluation
text. Builds keep their stores in the work folder, so that the same command goes on where it
stopped. All that was measured is in `methods.json` there.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from builds import QUICKSTART, ROOT, BuildFailedError, build, spread

#: What takes a recipe for `tyr` to one for the method; a section that is not read is refused.
METHODS: dict[str, list[str]] = {
    "tyr": ["method={kind: tyr}"],
    "uniform": ["method={kind: uniform}", "search=null"],
    "magnitude": ["method={kind: magnitude}", "search=null", "calibration=null"],
}

#: What methods read of an option that is given for all of them, by its first key.
READS = {
    "tyr": {"method", "search", "calibration"},
    "uniform": {"calibration"},
    "magnitude": set[str](),
}


@dataclass(frozen=True)
class Result:
    """What one build reported. `seed` is None for a method that draws nothing.

    divergence: that of the search's winner, on the search's own text
    excess_loss: nats per token above the dense model, on the evaluation text
    """

    method: str
    sparsity: float
    seed: int | None
    dense_perplexity: float
    perplexity: float
    ratio: float
    excess_loss: float
    measured_sparsity: float
    divergence: float | None
    token_forwards: int
    seconds: float


def settings_of(method: str, sparsity: float, seed: int | None, given: Sequence[str]) -> list[str]:
    """The `--set` values of one build, those of the command line last."""
    settings = [*METHODS[method], f"target.sparsity={sparsity}"]
    if seed is not None:
        settings.append(f"calibration.seed={seed}")
    if method == "tyr":
        settings.append(f"search.seed={seed}")
    conditional = {"method", "search", "calibration"}
    for setting in given:
        key = setting.partition("=")[0].partition(".")[0].strip()
        if key not in conditional or key in READS[method]:
            settings.append(setting)
    return settings


def result_of(method: str, sparsity: float, seed: int | None, report: dict[str, Any]) -> Result:
    perplexity, search = report["perplexity"], report["search"]
    return Result(
        method=method,
        sparsity=sparsity,
        seed=seed,
        dense_perplexity=perplexity["dense"],
        perplexity=perplexity["pruned"],
        ratio=perplexity["ratio"]["value"],
        excess_loss=math.log(perplexity["ratio"]["value"]),
        measured_sparsity=report["pruned"]["sparsity"],
        divergence=search["divergence"]["winner"] if search else None,
        token_forwards=report["cost"]["token_forwards"],
        seconds=report["cost"]["seconds"],
    )


def wins(method: str, results: Sequence[Result]) -> str:
    """On how many seeds the method has the lowest perplexity; no seed counts for every seed."""
    drawn = {result.seed for result in results if result.seed is not None}
    seeds: list[int | None] = [*sorted(drawn)] or [None]
    won = 0
    for seed in seeds:
        here = [result for result in results if result.seed in (None, seed)]
        won += min(here, key=lambda result: result.perplexity).method == method
    return f"{won}/{len(seeds)}"


def table(results: Sequence[Result]) -> str:
    """One row for each method at each sparsity."""
    lines = [
        "| sparsity | method | perplexity | ratio | excess loss (nats/token) | wins "
        "| token-forwards | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for sparsity in sorted({result.sparsity for result in results}):
        at = [result for result in results if result.sparsity == sparsity]
        for method in METHODS:
            rows = [result for result in at if result.method == method]
            if not rows:
                continue
            cells = [
                f"{sparsity:.1%}",
                method,
                spread([row.perplexity for row in rows]),
                spread([row.ratio for row in rows]),
                spread([row.excess_loss for row in rows], 4),
                wins(method, at),
                f"{statistics.fmean(row.token_forwards for row in rows):,.0f}",
                f"{statistics.fmean(row.seconds for row in rows):.0f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.25, 0.375, 0.5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--recipe", type=Path, default=QUICKSTART)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="given",
        metavar="KEY=VALUE",
        help="passed on to builds; method.* and search.* to tyr alone",
    )
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "benchmarks" / "methods", help="a folder"
    )
    arguments = parser.parse_args()

    builds = [
        (sparsity, method, seed)
        for sparsity in arguments.sparsity
        for method in arguments.methods
        for seed in (arguments.seeds if "calibration" in READS[method] else [None])
    ]
    results: list[Result] = []
    for number, (sparsity, method, seed) in enumerate(builds, start=1):
        began = time.monotonic()
        name = f"{method}-{sparsity:g}" + ("" if seed is None else f"-{seed}")
        settings = settings_of(method, sparsity, seed, arguments.given)
        try:
            report = build(arguments.recipe, arguments.work / name, settings).report
        except BuildFailedError as error:
            sys.exit(str(error))
        result = result_of(method, sparsity, seed, report)
        results.append(result)
        took = time.monotonic() - began
        print(
            f"[{number}/{len(builds)}] {name}: perplexity {result.dense_perplexity:.3f} → "
            f"{result.perplexity:.3f}, ratio {result.ratio:.3f} ({took:.0f} s)",
            file=sys.stderr,
            flush=True,
        )
        content = {
            "recipe": arguments.recipe.name,
            "set": arguments.given,
            "versions": report["versions"] | {"prunec": report["prunec_version"]},
            "evaluation": {key: report["perplexity"][key] for key in ("source", "tokens")},
            "results": [asdict(result) for result in results],
        }
        (arguments.work / "methods.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
