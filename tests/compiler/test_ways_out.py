# SPDX-License-Identifier: Apache-2.0
"""However a command ends, its exit code is that of what happened, and something says what it was:
whatever becomes of its output, and whatever is raised."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "prunec.compiler"]

#: The command line with a verdict that is about to be told: 0 or 1, behind so many lines.
VERDICT = """
import sys, typer
from pathlib import Path
from prunec.compiler import cli

@cli.app.command()
def judge(code: int, lines: int) -> None:
    sys.stderr.write("begun\\n" * lines)
    cli.verdict_is_in(Path("build/x/report"))
    cli._stdout().print("passed → 1 │ " * lines)
    sys.stdout.write("passed → 1\\n" * lines)
    raise typer.Exit(code)

@cli.app.command()
def fail() -> None:
    raise ValueError("a library said\\nhf_abcdefghijklmnopqrstuvwxyzABCDEFGH")

cli.main()
"""


def _judge(
    code: int, lines: int, shell: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    command = f'"$PYTHON" -c "$VERDICT" judge {code} {lines} {shell}'
    given = {"PYTHON": sys.executable, "VERDICT": VERDICT, **environment}
    return subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **given},
    )


@pytest.mark.parametrize("code", [0, 1])
@pytest.mark.parametrize("lines", [1, 20_000])
def test_a_full_output_leaves_the_verdict_as_it_is(code: int, lines: int) -> None:
    run = _judge(code, lines, "> /dev/full")
    assert run.returncode == code
    told = run.stderr.removeprefix("begun\n" * lines)
    assert told == "standard output: No space left on device; the report is in build/x/report\n"


@pytest.mark.parametrize("code", [0, 1])
def test_a_reader_that_wants_no_more_leaves_the_verdict_as_it_is(code: int) -> None:
    run = _judge(code, 20_000, "2> >(tail -1 >&2) | head -1 > /dev/null; exit ${PIPESTATUS[0]}")
    assert run.returncode == code, run.stderr
    both = _judge(code, 20_000, "2>&1 | head -1; exit ${PIPESTATUS[0]}")
    assert (both.returncode, both.stdout) == (code, "begun\n")
    assert _judge(code, 1, ">&- 2>&-").returncode == code


def test_an_output_of_few_characters_gets_them_escaped() -> None:
    run = _judge(1, 1, "", PYTHONIOENCODING="ascii")
    assert run.returncode == 1 and "passed \\u2192 1" in run.stdout
    assert run.stderr == "begun\n"
    assert _judge(1, 1, "", PYTHONIOENCODING="ascii:strict", LC_ALL="C").returncode == 1


def test_what_was_only_to_be_printed_and_was_not_is_a_failure() -> None:
    with Path("/dev/full").open("w") as full:
        run = subprocess.run(
            [*COMMAND, "schema"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (run.returncode, run.stderr) == (3, "standard output: No space left on device\n")
    closed = subprocess.run(
        [
            "bash",
            "-c",
            f"{sys.executable} -m prunec.compiler schema | head -1; exit ${{PIPESTATUS[0]}}",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (closed.returncode, closed.stdout, closed.stderr) == (0, "{\n", "")


def test_what_nobody_has_foreseen_is_a_failure_with_its_traceback_in_a_file(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", VERDICT, "fail"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert run.returncode == 3 and not run.stdout
    sentence, hint = run.stderr.splitlines()
    assert sentence.startswith("ValueError: a library said ") and hint.startswith("  hint: ")
    [log] = tmp_path.iterdir()
    assert sentence.endswith(f"the traceback is in {log}")
    assert "Traceback" in log.read_text() and "in fail" in log.read_text()
    assert "hf_abc" not in run.stderr + log.read_text()


@pytest.mark.parametrize(
    "wrong", [["nothing"], ["build"], ["plan", "no_such_recipe"], ["build", "--workers", "x"], []]
)
def test_a_wrong_command_line_is_the_users(wrong: list[str]) -> None:
    run = subprocess.run([*COMMAND, *wrong], capture_output=True, text=True, check=False)
    assert run.returncode == 2 and "Traceback" not in run.stderr


def test_damaged_files_are_told_by_every_command_that_opens_them(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{")
    (tmp_path / "model.safetensors").write_bytes(b"\x01")
    (tmp_path / "manifest.json").write_bytes(b"[")
    for command in ("inspect", "verify", "serve", "profile", "validate"):
        run = subprocess.run(
            [*COMMAND, command, str(tmp_path)],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        assert run.returncode in (1, 2, 3), command
        assert not re.search("Traceback|not foreseen", run.stderr), run.stderr
