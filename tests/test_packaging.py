# SPDX-License-Identifier: Apache-2.0
"""What the wheel holds: every module, recipe and example, under the one name prunec."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = SETTINGS["tool"]["setuptools"]
TOP_LEVEL = {name: ROOT / folder for name, folder in SETUPTOOLS["package-dir"].items()}
# What is in a folder of the project, and is nobody's to install.
LEFT_OUT = ("__pycache__", "*.pyc", ".*", "work")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The project's wheel, built from a copy: setuptools leaves its traces where it builds."""
    copy = tmp_path_factory.mktemp("project")
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, copy)
    for folder in TOP_LEVEL.values():
        shutil.copytree(
            folder, copy / folder.relative_to(ROOT), ignore=shutil.ignore_patterns(*LEFT_OUT)
        )
    build = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
    built = subprocess.run([sys.executable, "-c", build], cwd=copy, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    [path] = copy.glob("dist/*.whl")
    return zipfile.ZipFile(path)


def test_every_package_folder_is_listed() -> None:
    found = {
        ".".join([name, *init.parent.relative_to(folder).parts])
        for name, folder in TOP_LEVEL.items()
        for init in folder.rglob("__init__.py")
    }
    assert found <= set(SETUPTOOLS["packages"])


def test_the_wheel_holds_every_file_of_every_package(wheel: zipfile.ZipFile) -> None:
    ignored = shutil.ignore_patterns(*LEFT_OUT)
    expected = {
        "/".join([*name.split("."), *file.relative_to(folder).parts])
        for name, folder in TOP_LEVEL.items()
        for file in folder.rglob("*")
        if file.is_file() and not ignored("", list(file.relative_to(folder).parts))
    }
    assert expected <= set(wheel.namelist())


def test_the_wheel_claims_no_name_but_prunec(wheel: zipfile.ZipFile) -> None:
    modules = [name for name in wheel.namelist() if ".dist-info/" not in name]
    assert {name.split("/")[0] for name in modules} == {"prunec"}
    assert "prunec/__init__.py" not in modules  # a namespace: others may add to it


def test_the_wheel_installs_the_command_and_the_plugin_for_vllm(wheel: zipfile.ZipFile) -> None:
    [entry_points] = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    listed = wheel.read(entry_points).decode()
    assert "[console_scripts]\nprunec = prunec.compiler.cli:main" in listed
    assert "[vllm.general_plugins]\nprunec = prunec.exporters.vllm_plugin:register" in listed
