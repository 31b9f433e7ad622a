# SPDX-License-Identifier: Apache-2.0
"""Type-check everything: `python scripts/typecheck.py`, from an environment with mypy.

A type checker does not follow the import hook that an editable install leaves, so `prunec.compiler`
would be unknown to it. This lays the folders out under the names they are installed by (links to
folders, so a new file needs no renewal), lets mypy look there, and prints the paths as they stand
in the project.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE_THE_HOUSE = ("scripts", "tests", "benchmarks")


def lay_out(house: Path) -> None:
    """Link each package folder of `pyproject.toml` under `house`, by its installed name."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for package, folder in settings["tool"]["setuptools"]["package-dir"].items():
        link = house.joinpath(*package.split("."))
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink() or link.readlink() != ROOT / folder:
            link.unlink(missing_ok=True)
            link.symlink_to(ROOT / folder, target_is_directory=True)


def main() -> int:
    """Returns mypy's exit code."""
    house = Path(sys.prefix).resolve() / "house"
    lay_out(house)
    outside = [name for name in OUTSIDE_THE_HOUSE if any((ROOT / name).rglob("*.py"))]
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", house / "prunec", *outside],
        cwd=ROOT,
        env={
            **os.environ,
            # Scripts of `benchmarks` find each other there, as when they are run.
            "MYPYPATH": os.pathsep.join([str(house), str(ROOT / "benchmarks")]),
            "MYPY_FORCE_COLOR": str(int(sys.stdout.isatty())),
        },
        stdout=subprocess.PIPE,
        text=True,
    )
    for prefix in (f"{house}/prunec/", f"{os.path.relpath(house, ROOT)}/prunec/"):
        checked.stdout = checked.stdout.replace(prefix, "")
    print(checked.stdout, end="")
    return checked.returncode


if __name__ == "__main__":
    sys.exit(main())
