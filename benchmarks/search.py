# SPDX-License-Identifier: Apache-2.0
"""Týr as published against prunec's default: what does either reach, and for what?

    python benchmarks/search.py --jobs 2 --threads 1
    python benchmarks/search.py --ablation

Builds every contestant at every sparsity with every seed (of the calibration text and of the
search) on two models of different shapes; contestants take turns. Prints Markdown tables and
draws divergence against token-forwards. All that was measured is in `results.json` in the work
folder, by configuration, and not measured again; a build that was interrupted starts over, so
that its seconds and its memory are those of a whole one.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

from builds import QUICKSTART, ROOT, BuildFailedError, build, environment
from search_plot import draw
from search_results import Result, ResultFile, costs_table, pairs_table, remarks

from prunec.compiler.diagnostics import UserError
from prunec.compiler.plan import digest
from prunec.compiler.plan_builder import Subject
from prunec.compiler.planner import make_plan
from prunec.compiler.recipe_file import load_recipe
from prunec.compiler.subject import subject_for_plan

#: The default with one lever changed, or off; whoever equals the default is left out.
ABLATION: dict[str, tuple[str, ...]] = {
    "random": ("search.searcher=random",),
    "surrogate": ("search.searcher=surrogate",),
    "level-relaxation": ("search.searcher=level_relaxation",),
    "evolutionary": ("search.searcher=evolutionary",),
    "rounds-1": ("method.rounds=1",),
    "rounds-2": ("method.rounds=2",),
    "rounds-3": ("method.rounds=3",),
    "rounds-4": ("method.rounds=4",),
    "first-step-0.25": ("method.first_step=0.25",),
    "first-step-0.0625": ("method.first_step=0.0625",),
    "offspring-64": ("method.offspring=64",),
    "dense-target-0": ("method.dense_target=0",),
    "dense-target-0.5": ("method.dense_target=0.5",),
    "dense-target-1": ("method.dense_target=1",),
    "first-order-1": ("method.first_order=1",),
    "damping-0.001": ("method.damping=0.001",),
    "damping-0.01": ("method.damping=0.01",),
    "damping-0.1": ("method.damping=0.1",),
}


@dataclass(frozen=True)
class Case:
    """One build to be had. `key` changes with anything that decides what it gives."""

    model: Path
    sparsity: float
    seed: int
    contestant: str
    settings: tuple[str, ...]
    key: str

    @property
    def name(self) -> str:
        return f"{self.model.name}-{self.sparsity:g}-{self.seed}-{self.contestant}"


def contestants_of(arguments: argparse.Namespace) -> dict[str, tuple[str, ...]]:
    """The `--set` values of every contestant, by name; the one compared against comes first."""

    def searching(budget: int, method: str = "{kind: tyr}") -> tuple[str, ...]:
        return (f"method={method}", f"search.budget={{token_forwards: {budget}}}")

    default = searching(arguments.default_budget)
    if arguments.ablation:
        found = {"default": default}
        found |= {name: (*default, *changed) for name, changed in ABLATION.items()}
    else:
        found = {
            "faithful": searching(arguments.faithful_budget, "{kind: tyr, faithful: true}"),
            "default": default,
        }
    for given in arguments.contestant:
        name, _, setting = given.partition("=")
        if "=" not in setting:
            sys.exit(f"--contestant {given}: it is written NAME=KEY=VALUE")
        found[name] = (*found.get(name, default), setting)
    if arguments.only and (unknown := {*arguments.only} - {*found}):
        sys.exit(f"--only: there is no {', '.join(sorted(unknown))} among {', '.join(found)}")
    return {
        name: settings
        for name, settings in found.items()
        if not arguments.only or name in arguments.only
    }


def cases_of(
    arguments: argparse.Namespace, contestants: Mapping[str, Sequence[str]]
) -> Iterator[Case]:
    """All builds in their order: seeds outermost, so that early results span all targets."""
    for seed in arguments.seeds:
        for model in arguments.models:
            subject: Subject | None = None
            for sparsity in arguments.sparsity:
                common = (
                    f"model.source={model.resolve()}",
                    f"target.sparsity={sparsity}",
                    f"calibration.seed={seed}",
                    f"search.seed={seed}",
                    f"calibration.tokens={arguments.calibration_tokens}",
                    f"search.tokens={arguments.search_tokens}",
                    "validate.completion=null",  # it compares nothing
                )
                taken: dict[str, str] = {}
                for name, its_own in contestants.items():
                    # The method first: what others set may belong to it.
                    settings = (*its_own[:1], *common, *its_own[1:])
                    recipe = load_recipe(QUICKSTART, settings)
                    subject = subject or subject_for_plan(recipe.model)
                    # What decides the numbers, and nothing else: a default that changes, or a
                    # version, has those measured again that it concerns.
                    plan = make_plan(recipe, subject, QUICKSTART.parent)
                    judged = plan.step(plan.step("export-hf").inputs["layers"])
                    text = plan.step("evaluation-tokens")
                    key = digest([judged.fingerprint, text.fingerprint])
                    if (same := taken.setdefault(key, name)) == name:
                        yield Case(model, sparsity, seed, name, settings, key)
                    elif (seed, model, sparsity) == _first_target(arguments):
                        print(f"{name} is left out: it equals {same}", file=sys.stderr)


def _first_target(arguments: argparse.Namespace) -> tuple[int, Path, float]:
    return arguments.seeds[0], arguments.models[0], arguments.sparsity[0]


def measure(case: Case, work: Path, threads: int, jobs: int) -> Result:
    """Build, and measure what was written. BuildFailedError."""
    output = work / f"{case.name}-{case.key[:8]}"
    built = build(QUICKSTART, output, case.settings, threads=threads, fresh=True)
    report, search = built.report, built.report["search"]
    result = Result(
        model=case.model.name,
        sparsity=case.sparsity,
        seed=case.seed,
        contestant=case.contestant,
        settings=case.settings,
        dense_perplexity=report["perplexity"]["dense"],
        perplexity=report["perplexity"]["pruned"],
        excess_loss=math.log(report["perplexity"]["ratio"]["value"]),
        evaluation_divergence=divergence(case.model, output, threads),
        search_divergence=_finite(search["divergence"]["winner"]),
        measured_sparsity=report["pruned"]["sparsity"],
        token_forwards=report["cost"]["token_forwards"],
        search_token_forwards=search["history"][-1]["token_forwards"],
        seconds=report["cost"]["seconds"],
        cpu_seconds=built.cpu_seconds,
        peak_bytes=built.peak_bytes,
        threads=threads,
        jobs=jobs,
        curve=tuple(
            (point["token_forwards"], _finite(point["divergence"])) for point in search["history"]
        ),
        versions=report["versions"] | {"prunec": report["prunec_version"]},
    )
    shutil.rmtree(output / ".store")  # hundreds of megabytes, and nothing will be resumed
    return result


def _finite(value: float | None) -> float:
    """A report's JSON has null for what is not finite."""
    return math.inf if value is None else value


def divergence(model: Path, output: Path, threads: int) -> float:
    """On the evaluation text, in a process of its own: builds count this one's memory as theirs."""
    script = Path(__file__).with_name("divergence.py")
    command = [sys.executable, str(script), str(model), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(threads))
    if done.returncode:
        raise BuildFailedError(f"{' '.join(command)} failed:\n{done.stderr}")
    return float(done.stdout)


def run_all(cases: Sequence[Case], kept: ResultFile, arguments: argparse.Namespace) -> int:
    """Measure what is missing, so many at a time; returns how many builds failed."""
    missing = [case for case in cases if kept.get(case.key) is None]
    failed = 0
    with ThreadPoolExecutor(arguments.jobs) as workers:
        running = {
            workers.submit(measure, case, arguments.work, arguments.threads, arguments.jobs): case
            for case in missing
        }
        try:
            for number, future in enumerate(as_completed(running), start=1):
                case = running[future]
                label = f"[{number}/{len(missing)}] {case.name}"
                try:
                    result = future.result()
                except BuildFailedError as error:
                    failed += 1
                    print(f"{label}: {error}", file=sys.stderr, flush=True)
                    continue
                kept.add(case.key, result)
                print(
                    f"{label}: excess loss {result.excess_loss:.4f}, "
                    f"{result.token_forwards:,} token-forwards, {result.cpu_seconds:.0f} CPU s",
                    file=sys.stderr,
                    flush=True,
                )
        except BaseException:
            workers.shutdown(wait=False, cancel_futures=True)
            raise
    return failed


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    examples = [ROOT / "examples" / name for name in ("pytiny", "pydeep")]
    parser.add_argument("--models", type=Path, nargs="+", default=examples, metavar="FOLDER")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.25, 0.375, 0.5, 0.625])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--calibration-tokens", type=int, default=131_072)
    parser.add_argument("--search-tokens", type=int, default=16_384)
    parser.add_argument(
        "--faithful-budget",
        type=int,
        default=30_000_000,
        help="token-forwards of its searches; the default is what 4 rounds of 50 generations take, "
        "7,200,000 are enough for 12 each",
    )
    parser.add_argument("--default-budget", type=int, default=300_000)
    parser.add_argument(
        "--ablation", action="store_true", help="the default with one lever changed at a time"
    )
    parser.add_argument(
        "--contestant",
        action="append",
        default=[],
        metavar="NAME=KEY=VALUE",
        help="one more: the default with this set; again with the same name for more settings",
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="leave other contestants out")
    parser.add_argument("--against", metavar="NAME", help="whom the others are compared with")
    parser.add_argument("--jobs", type=int, default=1, help="builds at a time")
    parser.add_argument(
        "--threads", type=int, help="of every build; the cores shared out among jobs by default"
    )
    parser.add_argument("--table", action="store_true", help="build nothing, show what there is")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "benchmarks" / "search")
    arguments = parser.parse_args()
    arguments.threads = arguments.threads or max(1, (os.cpu_count() or 1) // arguments.jobs)
    arguments.against = arguments.against or ("default" if arguments.ablation else "faithful")
    return arguments


def measured(kept: ResultFile, arguments: argparse.Namespace) -> list[Result]:
    """What there is of what was asked for, wherever and under whatever versions it was measured."""
    models = [model.name for model in arguments.models]
    names = [*dict.fromkeys(one.contestant for one in kept.all())]
    found = [
        one
        for one in kept.all()
        if one.model in models
        and one.sparsity in arguments.sparsity
        and one.seed in arguments.seeds
        and one.contestant in (arguments.only or names)
    ]
    return sorted(found, key=lambda one: (models.index(one.model), names.index(one.contestant)))


def main() -> None:
    arguments = parse()
    kept = ResultFile(arguments.work / "results.json")
    failed, cases = 0, []
    if arguments.table:
        results = measured(kept, arguments)
    else:
        try:
            cases = list(cases_of(arguments, contestants_of(arguments)))
        except UserError as error:
            sys.exit(str(error))
        arguments.work.mkdir(parents=True, exist_ok=True)
        failed = run_all(cases, kept, arguments)
        # Another run may have measured the same under another name.
        results = [
            replace(result, contestant=case.contestant)
            for case in cases
            if (result := kept.get(case.key))
        ]
    if results:
        print(costs_table(results))
        if any(one.contestant == arguments.against for one in results):
            print("", pairs_table(results, arguments.against), sep="\n")
        print("", *remarks(results), sep="\n")
        plot = arguments.work / ("ablation" if arguments.ablation else "search")
        draw(results, plot)
        print(f"drawn: {plot}.png, {plot}.svg", file=sys.stderr)
    if failed:
        sys.exit(f"{failed} of {len(cases)} builds failed")


if __name__ == "__main__":
    main()
