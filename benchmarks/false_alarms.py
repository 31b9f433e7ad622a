# SPDX-License-Identifier: Apache-2.0
"""How often a model is called faster or slower than itself.

    python benchmarks/false_alarms.py --runtime hf onnx --repeats 20 --threads 1

Writes a Llama of random weights and a copy of it, and measures the copy against the original as a
build measures its artefacts: new processes in every repeat, `--pairs` turns of each. Prints a
Markdown table: how often the interval of the speed-up had 1 outside, and how wide it was.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median

import torch
from random_llama import llama, write_checkpoint

from prunec.compiler.model.facts import Facts
from prunec.compiler.model.layout import dense_layout
from prunec.validators.errors import ValidationError
from prunec.validators.hardware import hardware
from prunec.validators.measurements import SpeedResult
from prunec.validators.speed import SpeedSettings, measure_speed


def write(runtime: str, folder: Path, facts: Facts, dtype: str) -> None:
    if runtime == "onnx":
        import onnx_decode

        onnx_decode.write(folder, facts, dense_layout(facts), "float32")
    else:
        write_checkpoint(folder, facts, dense_layout(facts), getattr(torch, dtype))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runtime", nargs="+", choices=["hf", "onnx", "vllm"], default=["hf"])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=SpeedSettings.pairs)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    settings = SpeedSettings(
        batch_sizes=tuple(arguments.batch),
        prompt_tokens=arguments.prompt_tokens,
        new_tokens=arguments.new_tokens,
        pairs=arguments.pairs,
        dtype=arguments.dtype,
        threads=arguments.threads,
    )
    print(", ".join(f"{name} {value}" for name, value in hardware().items()) + "\n")
    print("| runtime | phase | batch | repeats | faster | slower | speed-ups | bounds, median |")
    print("| --- | --- | ---: | ---: | ---: | ---: | --- | --- |")
    for runtime in arguments.runtime:
        found: dict[tuple[str, int], list[SpeedResult]] = defaultdict(list)
        with tempfile.TemporaryDirectory() as kept:
            original, copy = Path(kept) / "original", Path(kept) / "copy"
            write(runtime, original, llama(arguments.layers), arguments.dtype)
            shutil.copytree(original, copy)
            for repeat in range(arguments.repeats):
                print(f"{runtime}: {repeat + 1} of {arguments.repeats}", file=sys.stderr)
                for result in measure_speed(runtime, original, copy, settings):
                    if result.error:
                        raise ValidationError(result.error)
                    found[result.phase, result.batch].append(result)
        for (phase, batch), results in found.items():
            ratios = [result.speedup for result in results]
            values = sorted(ratio.value for ratio in ratios)
            cells = [
                f"{sum(ratio.low > 1 for ratio in ratios)}",
                f"{sum(ratio.high < 1 for ratio in ratios)}",
                f"{values[0]:.3f} … {values[-1]:.3f}",
                f"{median(r.low for r in ratios):.3f} … {median(r.high for r in ratios):.3f}",
            ]
            print(f"| {runtime} | {phase} | {batch} | {len(ratios)} | {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
