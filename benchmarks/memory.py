# SPDX-License-Identifier: Apache-2.0
"""Builds under a hard limit of memory: what depth costs of it, and whether plans are true.

    python benchmarks/memory.py --shape 8B --limit 6GiB --recipe refit --keep /tmp/8b
    python benchmarks/memory.py --shape 1B --layers 2 4 --limit 3GiB
    python benchmarks/memory.py --table
    python benchmarks/memory.py --plot

Each build runs in a control group that the kernel holds to the limit, its file cache counted, with
`resources.memory` as much lower as `--spare` says: a build that took more would be killed. Models
are of random weights (`large_llama.py`). Results are kept in `benchmarks/measured/memory/`. Needs
Linux and the right to make a control group.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from builds import environment
from large_llama import SHAPES, config_of, write

from prunec.compiler.recipe_sizes import in_bytes

MEASURED = Path(__file__).parent / "measured" / "memory"
GROUPS = Path("/sys/fs/cgroup")
GIB, MIB = 2**30, 2**20

#: `search`: the default engine, with a search of seconds. `eliminate`: its walk alone. `refit`: the
#: units that most reaches stay, and are refitted; no elimination, which takes hours at 8B.
#: `gradients`: units are scored by gradients, layers are trained one by one. `whole`: what holds
#: whole models: adapters that are trained, a graph that is written, and what compares it.
METHODS: dict[str, dict[str, Any]] = {
    "search": {"kind": "tyr", "offspring": 4},
    "eliminate": {"kind": "uniform", "dense_target": 0.0},
    "refit": {"kind": "importance", "metrics": {"wanda": 1.0}, "refit": True, "dense_target": 0.0},
    "gradients": {"kind": "importance", "metrics": {"taylor_first": 1.0}, "refit": False},
    "whole": {"kind": "magnitude"},
}


def recipe(method: str, model: Path, memory: int, tokens: int, length: int) -> dict[str, Any]:
    """Half of a model, with little text."""
    text = {"kind": "python_stdlib"}
    made: dict[str, Any] = {
        "schema_version": 1,
        "model": {"source": str(model)},
        "method": METHODS[method],
        "target": {
            "sparsity": 0.5,
            "layout": "per_layer" if method == "search" else "uniform",
            "multiple_of": 128,
        },
        "calibration": {"source": text, "tokens": tokens, "sequence_length": length},
        "resources": {"memory": memory},
        "export": [{"kind": "hf"}],
        "validate": {
            "perplexity": {"source": text, "tokens": 4 * length, "sequence_length": length}
        },
    }
    if method == "gradients":
        made["recover"] = _recovery("blockwise", length)
    if method == "whole":
        del made["calibration"]
        made["recover"] = _recovery("lora", length)
        made["export"] += [{"kind": "onnx"}]
        made["validate"] |= {"parity": {}, "size": {}}
    if method == "search":
        made["search"] = {"tokens": 4 * length, "budget": {"token_forwards": 40 * length}}
    return made


def _recovery(kind: str, length: int) -> dict[str, Any]:
    """A recovery of a few steps."""
    text = {"source": {"kind": "python_stdlib"}, "sequence_length": length, "seed": 1}
    return {"kind": kind, **text, "tokens": 8 * length, "held_out_tokens": 2 * length}


@contextmanager
def control_group(limit: int) -> Iterator[Path]:
    """A group whose processes the kernel kills before they hold more than `limit` bytes."""
    unified = (GROUPS / "cgroup.controllers").exists()
    group = (GROUPS if unified else GROUPS / "memory") / f"prunec-{os.getpid()}"
    group.mkdir()
    try:
        name = "memory.max" if unified else "memory.limit_in_bytes"
        (group / name).write_text(str(limit))
        yield group
    finally:
        group.rmdir()


def peak_of(group: Path) -> int:
    """The most bytes that a group has held, cached files among them."""
    names = ("memory.peak", "memory.max_usage_in_bytes")
    return int(next((group / n).read_text() for n in names if (group / n).exists()))


def measure(arguments: argparse.Namespace, layers: int | None, keep: Path) -> dict[str, Any]:
    """One build under the limit: what each of its steps held, and how long it took."""
    limit, spare = int(str(in_bytes(arguments.limit))), int(str(in_bytes(arguments.spare)))
    model, output = keep / "model", keep / f"build-{arguments.recipe}"
    if not model.exists():
        write(model, config_of(arguments.shape, layers, arguments.vocabulary))
    keep.joinpath("recipe.yaml").write_text(
        json.dumps(
            recipe(arguments.recipe, model, limit - spare, arguments.tokens, arguments.length)
        )
    )
    command = [sys.executable, "-m", "prunec.compiler", "build", str(keep / "recipe.yaml")]
    began = time.monotonic()
    with control_group(limit) as group:

        def join() -> None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

        done = subprocess.run(
            [*command, "--output", str(output), "--json"],
            env=environment(arguments.threads),
            preexec_fn=join,
            stdout=subprocess.PIPE,
            text=True,
        )
        held = peak_of(group)
    if done.returncode not in (0, 1):
        raise SystemExit(f"the build ended with exit code {done.returncode}")
    plan = json.loads((output / "hf" / "prunec" / "plan.json").read_text())
    steps = []
    for step in plan["steps"]:
        folder = output / ".store" / step["fingerprint"]
        took = json.loads(json.loads((folder / "finished.json").read_text())["value"])
        written = output / step["params"]["kind"] if step["kind"] == "export" else folder
        cost = step["cost"]
        steps.append(
            {
                "name": step["name"],
                "memory": [cost["memory_bytes"], took["peak_rss_bytes"]],
                "disk": [cost["disk_bytes"], bytes_in(written)],
                "seconds": took["seconds"],
            }
        )
    return {
        "shape": arguments.shape,
        "recipe": arguments.recipe,
        "layers": layers or SHAPES[arguments.shape][5],
        "limit": limit,
        "group_peak": held,
        "model_bytes": sum(p.stat().st_size for p in model.glob("*.safetensors")),
        "tokens": arguments.tokens,
        "threads": arguments.threads,
        "seconds": time.monotonic() - began,
        "steps": steps,
    }


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def largest(result: dict[str, Any]) -> dict[str, Any]:
    """The step that held most memory."""
    step: dict[str, Any] = max(result["steps"], key=lambda step: step["memory"][1])
    return step


def table(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Lines of Markdown: a row a build, then how true the plan of each step was."""
    yield (
        "| shape | layers | weights, GiB | recipe | limit, GiB | largest step | planned, GiB "
        "| held, GiB | disk planned, GiB | written, GiB | minutes |"
    )
    yield "| --- | ---: | ---: | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |"
    for result in results:
        step = largest(result)
        planned, held = (value / GIB for value in step["memory"])
        disk = [sum(step["disk"][n] for step in result["steps"]) / GIB for n in (0, 1)]
        yield (
            f"| {result['shape']} | {result['layers']} | {result['model_bytes'] / GIB:.2f} "
            f"| {result['recipe']} | {result['limit'] / GIB:.1f} | {step['name']} | {planned:.2f} "
            f"| {held:.2f} | {disk[0]:.2f} | {disk[1]:.2f} "
            f"| {sum(step['seconds'] for step in result['steps']) / 60:.0f} |"
        )
    yield ""
    yield "Planned over held, step by step:"
    yield ""
    names = dict.fromkeys(step["name"] for result in results for step in result["steps"])
    names = {name: None for name in names if not name.endswith("-tokens")}
    yield f"| | {' | '.join(names)} |"
    yield f"| --- |{' ---: |' * len(names)}"
    for result in results:
        steps = {step["name"]: step["memory"] for step in result["steps"]}
        ratios = (f"{steps[n][0] / steps[n][1]:.2f}" if n in steps else "" for n in names)
        named = f"{result['shape']}, layers: {result['layers']}, {result['recipe']}"
        yield f"| {named} | {' | '.join(ratios)} |"


def plot(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Memory of the steps that work on layers against depth, beside the model's own weights."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = [(result["shape"], result["recipe"]) for result in results]
    deep = [r for r, kind in zip(results, kinds, strict=True) if kinds.count(kind) > 1]
    deep.sort(key=lambda result: int(result["layers"]))
    figure, axes = pyplot.subplots(figsize=(6.4, 3.8))
    layers = [result["layers"] for result in deep]
    weights = [result["model_bytes"] / GIB for result in deep]
    axes.plot(layers, weights, "--", color="0.5", label="weights of the dense model")
    for number, step in enumerate(deep[0]["steps"]):
        peaks = [result["steps"][number]["memory"][1] / GIB for result in deep]
        if not step["name"].endswith("-tokens"):
            axes.plot(layers, peaks, marker="o", label=step["name"])
    axes.set_xlabel(f"layers of the {deep[0]['shape']} shape")
    axes.set_ylabel("GiB resident at most")
    axes.set_xticks(layers)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="1B")
    parser.add_argument("--layers", type=int, nargs="+", help="depths; the published one if none")
    parser.add_argument("--recipe", choices=METHODS, default="search")
    parser.add_argument("--limit", default="6GiB")
    parser.add_argument("--spare", default="256MiB", help="what the plan leaves of the limit")
    parser.add_argument("--tokens", type=int, default=4096, help="of calibration")
    parser.add_argument("--length", type=int, default=512, help="of a window, in tokens")
    parser.add_argument("--vocabulary", type=int, default=128_256)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--keep", type=Path, help="where the model and the build stay")
    parser.add_argument("--table", action="store_true", help="print what was measured before")
    parser.add_argument("--plot", action="store_true", help="draw what was measured before")
    arguments = parser.parse_args()
    MEASURED.mkdir(parents=True, exist_ok=True)
    if not (arguments.table or arguments.plot):
        for layers in arguments.layers or [None]:
            depth = layers or SHAPES[arguments.shape][5]
            folder = arguments.keep or Path("build", f"memory-{arguments.shape}-{depth}")
            folder = folder.resolve()
            folder.mkdir(parents=True, exist_ok=True)
            result = measure(arguments, layers, folder)
            name = f"{arguments.shape}-{depth}-{arguments.recipe}.json"
            (MEASURED / name).write_text(json.dumps(result, indent=1) + "\n")
    results = [json.loads(path.read_text()) for path in sorted(MEASURED.glob("*.json"))]
    if arguments.plot:
        plot(results, MEASURED / "depth.svg")
    print("\n".join(table(results)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
