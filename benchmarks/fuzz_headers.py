# SPDX-License-Identifier: Apache-2.0
"""Safetensors headers and configs, chosen by which lines of their readers they reach (atheris).

    pip install atheris
    python benchmarks/fuzz_headers.py --seconds 300 --seed 1

Whatever the bytes, a reader answers or refuses in one sentence. What does otherwise, or takes a
minute, ends the run with its traceback, and its bytes are kept in the folder for findings.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["prunec.compiler.model", "prunec.validators"]):
    import fuzzing

    from prunec.compiler.model.errors import ModelError
    from prunec.compiler.model.facts import facts_from_config
    from prunec.compiler.model.headers import read_header, read_json
    from prunec.compiler.model.layout import dense_layout, tensor_shapes
    from prunec.validators.errors import ValidationError
    from prunec.validators.headers import read_header as validators_read_header

ROOT = Path(__file__).resolve().parent.parent
FINDINGS = ROOT / "build" / "benchmarks" / "fuzz"


def shapes_of(path: Path) -> Any:
    facts = facts_from_config(read_json(path))
    return tensor_shapes(facts, dense_layout(facts))


READERS: list[tuple[Any, Any]] = [
    (read_header, ModelError),
    (validators_read_header, ValidationError),
    (shapes_of, ModelError),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--findings", type=Path, default=FINDINGS, help="a folder")
    arguments = parser.parse_args()
    arguments.findings.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp())
    corpus = work / "corpus"
    corpus.mkdir()
    fuzzing.make_folder(work)
    shutil.copy(work / "model" / "model.safetensors", corpus / "header")
    shutil.copy(work / "model" / "config.json", corpus / "config")
    path = work / "input"

    def one(data: bytes) -> None:
        path.write_bytes(data)
        for read, refusal in READERS:
            try:
                read(path)
            except refusal as error:
                assert "\n" not in error.message

    options = [f"-max_total_time={arguments.seconds}", f"-seed={arguments.seed}", "-max_len=8192"]
    options += [f"-timeout={fuzzing.SECONDS}", f"-artifact_prefix={arguments.findings}/"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()  # ends the process


if __name__ == "__main__":
    main()
