# SPDX-License-Identifier: Apache-2.0
"""Are plans true? Builds models of random weights and holds what every step took against the plan.

    python benchmarks/plan.py --shape 1B 3B 8B --layers 3 --threads 1
    python benchmarks/plan.py --shape 8B --memory 6GiB --threads 1
    python benchmarks/plan.py --table

A shape is one of `large_llama.py`, or HIDDENxFFNxHEADSxKVHEADS with heads of 64 or 128. Results are
kept as JSON in `benchmarks/measured/plan/`, and printed as Markdown tables: memory is the peak of
the process in a step, disk what the step left in the store or wrote beside it, hours those of
`--machine`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from builds import QUICKSTART, build
from large_llama import SHAPES, config_of, write

from prunec.compiler.machine import Machine
from prunec.compiler.placing import in_words
from prunec.compiler.planned import plan_recipe
from prunec.compiler.store import Store
from prunec.compiler.subject import subject_for_plan

MEASURED = Path(__file__).parent / "measured" / "plan"
MIB, SECONDS = 2**20, 3600


def shaped(shape: str, layers: int, vocabulary: int) -> dict[str, Any]:
    """The config.json of a shape."""
    if shape in SHAPES:
        return config_of(shape, layers, vocabulary)
    hidden, ffn, heads, kv_heads = (int(number) for number in shape.split("x"))
    return config_of("1B", layers, vocabulary) | {
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
    }


def settings(model: Path, arguments: argparse.Namespace) -> list[str]:
    """The quickstart on another model, with text that is in proportion to what matrices take."""
    found = {
        "model.source": json.dumps(str(model)),
        "target.multiple_of": 128,
        "calibration.sequence_length": arguments.length,
        "calibration.tokens": arguments.tokens,
        "search.tokens": 4 * arguments.length,
        "search.budget.token_forwards": 60 * arguments.length,
        "validate.perplexity.sequence_length": arguments.length,
        "validate.perplexity.tokens": 8 * arguments.length,
        "validate.perplexity.max_ratio": 1e9,
        "validate.completion": "null",
    }
    if arguments.memory:
        found["resources.memory"] = arguments.memory
    return [f"{key}={value}" for key, value in found.items()]


def measure(shape: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """What a plan said of every step of a build, and what it took."""
    with tempfile.TemporaryDirectory(dir=arguments.into) as folder:
        model, output = Path(folder, "model"), Path(folder, "build")
        write(model, shaped(shape, arguments.layers, arguments.vocabulary))
        wanted = settings(model, arguments)
        plan = plan_recipe(QUICKSTART, wanted, subject_for_plan).plan
        build(QUICKSTART, output, wanted, threads=arguments.threads)
        machine, store, steps = Machine.find(arguments.machine), Store(output / ".store"), []
        for step in plan.steps:
            entry = store.entry(step.fingerprint)
            took = entry.record()
            assert took is not None
            written = output / str(step.params["kind"]) if step.kind == "export" else entry.folder
            steps.append(
                {
                    "name": step.name,
                    "memory": [step.cost.memory_bytes, took["peak_rss_bytes"]],
                    "disk": [step.cost.disk_bytes, _bytes_in(written)],
                    "seconds": [SECONDS * machine.hours(step.cost), took["seconds"]],
                }
            )
    return {
        "shape": f"{shape}, {arguments.layers} layers",
        "placement": in_words(plan.placement),
        "machine": machine.name,
        "threads": arguments.threads,
        "steps": steps,
    }


def table(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Lines of Markdown."""
    for result in results:
        yield f"{result['shape']}: {result['placement']}; on {result['machine']}"
        yield ""
        yield "| step | memory, MiB | took | ratio | disk, MiB | took | seconds | took |"
        yield "| --- " + "| ---: " * 7 + "|"
        for step in result["steps"]:
            memory, held = (value / MIB for value in step["memory"])
            disk, kept = (value / MIB for value in step["disk"])
            expected, seconds = step["seconds"]
            yield (
                f"| {step['name']} | {memory:,.0f} | {held:,.0f} | {memory / held:.2f} "
                f"| {disk:,.1f} | {kept:,.1f} | {expected:,.1f} | {seconds:,.1f} |"
            )
        yield ""


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shape", nargs="+", default=["1024x4096x16x4", "1B", "3B"])
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--length", type=int, default=1024, help="of a window, in tokens")
    parser.add_argument("--tokens", type=int, default=16_384, help="of calibration")
    parser.add_argument("--memory", help="resources.memory")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--machine", type=Path, default=Path("epyc-1-thread"))
    parser.add_argument("--into", type=Path, help="where models and builds lie meanwhile")
    parser.add_argument("--table", action="store_true", help="print what was measured before")
    arguments = parser.parse_args()
    if not arguments.table:
        for shape in arguments.shape:
            result = measure(shape, arguments)
            MEASURED.mkdir(parents=True, exist_ok=True)
            name = f"{shape}-{arguments.layers}-{arguments.memory or 'roomy'}.json"
            (MEASURED / name).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    results = [json.loads(path.read_text()) for path in sorted(MEASURED.glob("*.json"))]
    print("\n".join(table(results)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
