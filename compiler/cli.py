# SPDX-License-Identifier: Apache-2.0
"""The command line. Heavy imports wait until a command needs them: `--help` answers at once."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from prunec import recipes as shipped
from prunec.compiler.annotations import github_annotations
from prunec.compiler.diagnostics import BuildError, Diagnostic, UserError
from prunec.compiler.interruptions import leaving_at_once, sentence, terminated_in_order
from prunec.compiler.standard_streams import unfailing_streams, verdict_is_in
from prunec.compiler.unexpected import told

if TYPE_CHECKING:
    from rich.console import Console

    from prunec.compiler.planned import Planned


app = typer.Typer(
    name="prunec",
    help="A compiler that makes large language models physically smaller.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RecipeArgument = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped recipe.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a field: target.sparsity=0.375."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command()
def build(
    recipe: RecipeArgument,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where results go.  [default: build/<recipe name>]"),
    ] = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Ignore the results of earlier builds.")
    ] = False,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes on this machine that share the work.")
    ] = 1,
) -> None:
    """Make the model smaller, write it, judge it. Exit code 1 if a gate fails."""
    from prunec.compiler.planned import plan_recipe
    from prunec.compiler.subject import subject_for_build

    path = shipped.find(recipe)
    planned = plan_recipe(path, set_ or (), subject_for_build)
    destination = output or Path("build") / path.stem
    command = shlex.join(["prunec", "build", str(recipe), *_options(set_)])
    if workers > 1:
        with leaving_at_once():
            from prunec.compiler.launcher import launch
        flags = [*(["--json"] if as_json else []), *(["--fresh"] if fresh else [])]
        again = ["build", str(recipe), "--output", str(destination), *_options(set_), *flags]
        raise typer.Exit(launch(again, workers))
    _carry_out(planned, path.stem, command, destination, as_json=as_json, fresh=fresh)


@app.command()
def validate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A build, or a model folder.")],
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="RECIPE",
            help="Whose `validate` says what is measured.  [default: perplexity and size, no gate]",
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The dense model.  [default: the recipe's, or what DIR was made from]",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where results go.  [default: build/validate-<folder>]"),
    ] = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Ignore the results of earlier runs.")
    ] = False,
) -> None:
    """Judge any checkpoint beside its dense model. Exit code 1 if a gate fails."""
    from prunec.compiler import validate_command
    from prunec.compiler.dense_model import dense_model_of
    from prunec.compiler.planned import plan_recipe
    from prunec.compiler.subject import subject_for_build

    given = validate_command.find(folder)
    destination = output or Path("build") / f"validate-{folder.resolve().name}"
    known = None if recipe or against else dense_model_of(folder)
    if known:
        _stderr().print(
            f"against {known.source}, which it was made from", highlight=False, soft_wrap=True
        )
    if recipe:
        path = shipped.find(recipe)
    else:
        path = validate_command.write_default_recipe(given, destination)
    dense = validate_command.overrides_of(known.source if known else against)
    if known and known.commit:
        dense.append(f"model.revision={known.commit}")
    plan = partial(validate_command.make_plan, given=given, made_from=known)
    planned = plan_recipe(path, [*dense, *(set_ or [])], subject_for_build, plan)
    options = [*(["--recipe", str(recipe)] if recipe else []), *_options(set_)]
    options += ["--against", against] if against else []
    command = shlex.join(["prunec", "validate", str(folder), *options])
    _carry_out(planned, folder.resolve().name, command, destination, as_json=as_json, fresh=fresh)


@app.command()
def sweep(
    recipe: RecipeArgument,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE,…", help="What varies: target.sparsity=0.25,0.375,0.5."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where results go.  [default: build/sweep-<recipe name>]"),
    ] = None,
    only_plan: Annotated[
        bool, typer.Option("--plan", help="Show what would be built, and what is shared.")
    ] = False,
    as_json: JsonOption = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Ignore the results of earlier sweeps.")
    ] = False,
    own_supernets: Annotated[
        bool,
        typer.Option(
            "--own-supernets",
            help="For every sparsity a supernet of its own, as a build by itself would have.",
        ),
    ] = False,
) -> None:
    """Build a recipe over a grid of settings; exit code 1 if no point passes its gates."""
    from prunec.compiler.subject import subject_for_build, subject_for_plan
    from prunec.compiler.sweep_command import plan_points

    def say(text: str) -> None:
        _stderr().print(text, highlight=False, soft_wrap=True)

    path = shipped.find(recipe)
    find = subject_for_plan if only_plan else subject_for_build
    points = plan_points(path, set_ or [], find, say, share_supernets=not own_supernets)
    if only_plan:
        from prunec.compiler.sweep_plan import SweepPlan, render_sweep_plan

        planned = SweepPlan(tuple(points))
        if as_json:
            _print_json(planned.as_dict())
        else:
            render_sweep_plan(planned, _stdout())
        return

    with leaving_at_once():
        from prunec.compiler.progress import Narrator
        from prunec.compiler.sweep_builds import build_points
        from prunec.validators.sweep_report import render_sweep

    destination = output or Path("build") / f"sweep-{path.stem}"
    flags = ["--own-supernets"] if own_supernets else []
    command = shlex.join(["prunec", "sweep", str(recipe), *_options(set_), *flags])
    result = build_points(
        points, str(recipe), command, destination, Narrator(_stderr()), fresh=fresh
    )
    verdict_is_in(destination)
    if as_json:
        _print_json(result.as_dict())
    else:
        render_sweep(result, _stdout(), destination)
    if len(result.reports) < len(result.points):
        raise typer.Exit(BuildError.exit_code)
    raise typer.Exit(0 if any(report.passed for report in result.reports) else 1)


@app.command()
def plan(
    recipe: RecipeArgument,
    set_: SetOption = None,
    machine: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|NAME",
            help="Say how long it takes there, by a profile that `prunec profile --machine` "
            "wrote, or a shipped one.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a build would do and cost, without reading a weight."""
    from prunec.compiler.machine import Machine
    from prunec.compiler.plan_summary import summarise
    from prunec.compiler.plan_table import render_plan
    from prunec.compiler.planned import plan_recipe
    from prunec.compiler.subject import subject_for_plan

    there = Machine.find(machine) if machine else None
    planned = plan_recipe(shipped.find(recipe), set_ or (), subject_for_plan)
    _warn(planned)
    if as_json:
        _print_json(summarise(planned.recipe, planned.subject, planned.plan, there))
    else:
        render_plan(planned.recipe, planned.subject, planned.plan, _stdout(), there)


@app.command()
def profile(
    model: Annotated[
        Path | None,
        typer.Argument(metavar="RECIPE|MODEL", help="A recipe, a model's folder, or its hub id."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where the table goes.  [default: what the recipe names, or latency.json]",
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of the weights.  [default: the recipe's, or bfloat16]")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 ….  [default: a GPU if there is one]")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences at once.")] = 1,
    tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of a prefill, and in the cache when decoding.")
    ] = 512,
    repeats: Annotated[int, typer.Option(min=1, help="Samples of each part.")] = 30,
    machine: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Measure the machine instead, for `prunec plan --machine`; takes --device only.",
        ),
    ] = None,
) -> None:
    """Measure what a model's layers take here at every size: the table of target.speedup."""
    from prunec.compiler import profile_command
    from prunec.compiler.latency_table import render_latency
    from prunec.compiler.progress import Narrator

    narrator = Narrator(_stderr())
    if machine:
        said = profile_command.profile_machine(machine, device, model, narrator)
    else:
        asked = profile_command.request(model, dtype, output)
        facts, latency, said = profile_command.profile_model(
            asked, device, narrator, batch=batch, tokens=tokens, repeats=repeats
        )
        render_latency(facts, latency, _stdout())
    _stderr().print(said, highlight=False, soft_wrap=True)


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A build, or a model folder.")],
    as_json: JsonOption = False,
) -> None:
    """Say what an artefact is: layers, sizes, recipe, verdict, and whether it is intact."""
    from prunec.validators.artefact import inspect as open_artefact
    from prunec.validators.errors import ValidationError
    from prunec.validators.tables import render_artefact

    try:
        artefact = open_artefact(folder)
    except ValidationError as error:
        raise UserError(Diagnostic(error.message, hint=error.hint)) from None
    verdict_is_in(None)
    if as_json:
        _print_json(artefact.as_dict())
    else:
        render_artefact(artefact, _stdout())
    raise typer.Exit(1 if artefact.problems else 0)


@app.command()
def verify(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A build, a sweep, an artefact, a model folder.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Check every hash and open every file: exit code 1 if anything is wrong."""
    with leaving_at_once():
        from prunec.compiler import verify_command
        from prunec.compiler.progress import Narrator

    with Narrator(_stderr()).step("verify") as update:
        found = verify_command.verify(folder, verify_command.counting(update))
    verdict_is_in(None)
    if as_json:
        _print_json(found.as_dict())
    else:
        verify_command.render(found, _stdout())
    raise typer.Exit(1 if found.problems else 0)


@app.command()
def compare(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="Builds, results of validate, model folders."),
    ],
    as_json: JsonOption = False,
) -> None:
    """Show artefacts side by side, and say where their numbers are not comparable."""
    from prunec.validators.comparison import compare as side_by_side
    from prunec.validators.comparison import render_comparison
    from prunec.validators.errors import ValidationError

    try:
        comparison = side_by_side(folders)
    except ValidationError as error:
        raise UserError(Diagnostic(error.message, hint=error.hint)) from None
    if as_json:
        _print_json(comparison.as_dict())
    else:
        render_comparison(comparison, _stdout())


@app.command()
def serve(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A build, or an artefact.")],
    extra: Annotated[
        list[str] | None, typer.Argument(metavar="[-- ARGUMENTS]", help="Passed to vLLM.")
    ] = None,
    run: Annotated[bool, typer.Option("--run", help="Serve, instead of printing how.")] = False,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Where to listen.")] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="bfloat16, float16, float32.  [default: vLLM's choice, never float32]"),
    ] = None,
) -> None:
    """Print the command with which vLLM serves an artefact, or run it."""
    from prunec.compiler import serve_command

    command = serve_command.command_for(folder, port=port, dtype=dtype, extra=extra or [])
    if run:
        serve_command.run(command)
    sys.stdout.write(f"{shlex.join(command)}\n")


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes."""
    from prunec.compiler.recipe import render_schema

    sys.stdout.write(render_schema())


@app.command()
def recipes() -> None:
    """List the recipes that ship with prunec."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    for path in sorted(shipped.folder().glob("*.yaml")):
        table.add_row(path.stem, shipped.first_sentence(path))
    _stdout().print(table)
    _stderr().print(f"\nin {shipped.folder()}; build one with: prunec build <name>", style="dim")


def main() -> None:
    """The command. Exit codes: 0 passed, 1 a gate failed, 2 usage, 3 failure, 130 interrupted,
    143 terminated."""
    with unfailing_streams():
        _run()


def _run() -> None:
    try:
        with terminated_in_order():
            app(standalone_mode=True)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        # Read by the runner from either stream; standard output is for data.
        sys.stderr.write(github_annotations(error.diagnostics))
        sys.exit(UserError.exit_code)
    except BuildError as error:
        _fail(error)
    except SystemExit as left:
        # Typer has caught the KeyboardInterrupt, and says nothing.
        sys.stderr.write(sentence(left.code))
        raise
    except Exception as error:  # Python's own exit code, 1, would read as a gate that failed
        _fail(told(error))


def _fail(error: BuildError) -> NoReturn:
    sys.stderr.write(f"{error}\n")
    sys.exit(BuildError.exit_code)


def _carry_out(
    planned: Planned, name: str, command: str, output: Path, *, as_json: bool, fresh: bool
) -> None:
    """Run a plan, show its report and leave with the exit code of its gates. Of several workers the
    first one does, and the others only help."""
    with leaving_at_once():
        from prunec.compiler import build_command
        from prunec.compiler.launcher import telling_of_lost_workers
        from prunec.compiler.output_folder import REPORT
        from prunec.compiler.passes.workers import joined
        from prunec.compiler.progress import Narrator
        from prunec.compiler.store import Store
        from prunec.validators.tables import render_table

    with telling_of_lost_workers(), joined() as workers:
        if not workers.leads:
            build_command.follow(planned, output, workers)
            return
        _warn(planned)
        build_command.check(planned, Store(output / ".store"), fresh=fresh)
        narrator = Narrator(_stderr())
        report = build_command.run(
            planned, name, command, output, narrator, fresh=fresh, workers=workers
        )
    verdict_is_in(output / REPORT)
    if as_json:
        _print_json(report.as_dict())
    else:
        render_table(report, _stdout(), output)
    raise typer.Exit(0 if report.passed else 1)


def _warn(planned: Planned) -> None:
    for warning in planned.plan.warnings:
        sys.stderr.write(f"warning: {warning}\n")


def _options(overrides: list[str] | None) -> Iterator[str]:
    """Overrides as they stand on a command line."""
    for override in overrides or ():
        yield from ("--set", override)


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def _stdout() -> Console:
    from prunec.compiler.terminal import stdout

    return stdout()


def _stderr() -> Console:
    from prunec.compiler.terminal import stderr

    return stderr()
