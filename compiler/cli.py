# SPDX-License-Identifier: Apache-2.0
"""The command line. Heavy imports wait until a command needs them: `--help` answers at once."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunec.compiler.diagnostics import BuildError, Diagnostic, RecipeProblemError, UserError

if TYPE_CHECKING:
    from rich.console import Console


app = typer.Typer(
    name="prunec",
    help="A compiler that makes large language models physically smaller.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

#: Spread of repeated measurements, as a share of the median, from which on it is mentioned.
RESTLESS = 0.2

#: Exit code of a command that Ctrl-C has stopped.
INTERRUPTED = 130
_INTERRUPTION = "interrupted; the same command goes on where it stopped\n"

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
) -> None:
    """Make the model smaller, write it, judge it. Exit code 1 if a gate fails."""
    from prunec.compiler.recipe_file import load_recipe

    path = find_recipe(recipe)
    loaded = load_recipe(path, set_ or ())

    with _leaving_at_once():
        from prunec.compiler.driver import build as run_build
        from prunec.compiler.planner import make_plan
        from prunec.compiler.progress import Narrator
        from prunec.compiler.steps.context import Context
        from prunec.compiler.store import Store
        from prunec.compiler.subject import subject_for_build
        from prunec.validators.tables import render_table

    with _placed(path, set_ or []):
        subject = subject_for_build(loaded.model)
        plan = make_plan(loaded, subject, path.parent)
    assert subject.folder is not None  # a build has a checkpoint
    destination = output or Path("build") / path.stem
    context = Context(
        recipe=loaded,
        recipe_text=_effective_text(path, set_ or []),
        base=path.parent,
        folder=subject.folder,
        output=destination,
        subject=subject,
        plan=plan,
        store=Store(destination / ".store"),
    )
    report = run_build(context, path.stem, Narrator(_stderr()), fresh=fresh)
    if as_json:
        _print_json(report.as_dict())
    else:
        render_table(report, _stdout(), destination)
    raise typer.Exit(0 if report.passed else 1)


@app.command()
def plan(recipe: RecipeArgument, set_: SetOption = None, as_json: JsonOption = False) -> None:
    """Show what a build would do and cost, without reading a weight."""
    from prunec.compiler.plan_table import render_plan
    from prunec.compiler.planner import make_plan
    from prunec.compiler.recipe_file import load_recipe
    from prunec.compiler.subject import subject_for_plan

    path = find_recipe(recipe)
    loaded = load_recipe(path, set_ or ())
    with _placed(path, set_ or []):
        subject = subject_for_plan(loaded.model)
        made = make_plan(loaded, subject, path.parent)
    if as_json:
        _print_json(made.as_dict())
    else:
        render_plan(loaded, subject, made, _stdout())


@app.command()
def profile(
    model: Annotated[
        Path,
        typer.Argument(metavar="RECIPE|MODEL", help="A recipe, a model's folder, or its hub id."),
    ],
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
) -> None:
    """Measure what a model's layers take here at every size: the table of target.speedup."""
    from prunec.compiler.profile_command import is_model, request

    path = model if is_model(model) else find_recipe(model)
    asked = request(path, dtype)

    with _leaving_at_once():
        from prunec.compiler.latency_table import render_latency
        from prunec.compiler.profiler import find_device
        from prunec.compiler.profiler import profile as measure
        from prunec.compiler.progress import Narrator
        from prunec.compiler.subject import subject_for_plan

    with _placed(path, []):
        facts = subject_for_plan(asked.model).facts
    destination = output or asked.output
    if not destination.absolute().parent.is_dir():
        raise UserError(Diagnostic(f"--output: there is no folder {destination.parent}"))
    where = find_device(device)
    with Narrator(_stderr()).step("profile") as update:
        latency = measure(
            facts,
            asked.model.dtype,
            where,
            batch=batch,
            tokens=tokens,
            multiple_of=asked.multiple_of,
            repeats=repeats,
            on_progress=lambda done, of: update(done, of, "samples"),
        )
    latency.save(destination)
    render_latency(facts, latency, _stdout())
    said = f"written to {destination}"
    if latency.spread > RESTLESS:
        said += "; the machine was busy, and a table from an idle one would be more exact"
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
    if as_json:
        _print_json(artefact.as_dict())
    else:
        render_artefact(artefact, _stdout())
    raise typer.Exit(1 if artefact.problems else 0)


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
    import shlex

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

    from prunec import recipes as shipped

    table = Table(box=None, pad_edge=False, show_header=False)
    for path in sorted(shipped.folder().glob("*.yaml")):
        table.add_row(path.stem, _first_sentence(path))
    _stdout().print(table)
    _stderr().print(f"\nin {shipped.folder()}; build one with: prunec build <name>", style="dim")


def find_recipe(path: Path) -> Path:
    """The file that a RECIPE argument means: a path, or the bare name of a shipped recipe."""
    if path.exists() or path.parent != Path() or path.suffix:
        return path
    from prunec import recipes as shipped

    candidate = shipped.folder() / f"{path.name}.yaml"
    return candidate if candidate.is_file() else path


def main() -> None:
    """The command. Exit codes: 0 passed, 1 a gate failed, 2 usage, 3 failure, 130 interrupted."""
    try:
        app(standalone_mode=True)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(UserError.exit_code)
    except BuildError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(BuildError.exit_code)
    except SystemExit as left:
        if left.code == INTERRUPTED:  # typer has caught the KeyboardInterrupt, and says nothing
            sys.stderr.write(_INTERRUPTION)
        raise


@contextmanager
def _leaving_at_once() -> Iterator[None]:
    """Ctrl-C ends the process there and then; for imports, which have nothing to put in order.

    Some libraries swallow a KeyboardInterrupt while they are imported, and fail on it later.
    """

    def leave(*_: object) -> None:
        os.write(2, _INTERRUPTION.encode())
        os._exit(INTERRUPTED)

    before = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _placed(path: Path, overrides: list[str]) -> Iterator[None]:
    """Gives mistakes that planning finds in a recipe their place in it."""
    from prunec.compiler.recipe_file import place_of

    try:
        yield
    except RecipeProblemError as error:
        where = place_of(path, overrides, error.key) if path.is_file() else None
        raise UserError(Diagnostic(error.message, where, error.hint)) from None


def _effective_text(path: Path, overrides: list[str]) -> str:
    """The recipe as it was written, with the overrides that were given as comments."""
    text = path.read_text(encoding="utf-8")
    if not overrides:
        return text
    return "".join(f"# --set {override}\n" for override in overrides) + text


def _first_sentence(path: Path) -> str:
    """What a recipe says of itself: its first sentence."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = [line.lstrip("# ") for line in lines if line.startswith("#")]
    text = " ".join(line for line in comments if line and "yaml-language-server" not in line)
    return text.partition(". ")[0]


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def _stdout() -> Console:
    from rich.console import Console

    # Piped into a file there is no terminal's width to keep to.
    return Console() if sys.stdout.isatty() else Console(width=120)


def _stderr() -> Console:
    from rich.console import Console

    return Console(stderr=True)
