# SPDX-License-Identifier: Apache-2.0
"""Every importance metric, with and without refit: which to choose?

    python benchmarks/importance.py --sparsity 0.2 0.5 --seeds 0 1 2 --threads 1

Builds `importance` with each metric by itself, `uniform` (the same layouts, units chosen by
elimination) and `magnitude`, and prints a Markdown table of the loss above the dense model's, on
Python code as the model was trained on, and on prose, which it was not.
"""

from __future__ import annotations

from typing import get_args

from contest import Contestant, parser_of, run, table

from prunec.compiler.recipe_methods import Metric


def contestants() -> dict[str, Contestant]:
    found = {}
    for refit in (True, False):
        for metric in get_args(Metric):
            method = f"{{kind: importance, metrics: {{{metric}: 1}}, refit: {str(refit).lower()}}}"
            name = metric if refit else f"{metric}, no refit"
            seeded = refit or not metric.startswith("magnitude")
            text = () if seeded else ("calibration=null",)
            found[name] = Contestant((f"method={method}", "search=null", *text), seeded)
    found["uniform"] = Contestant(("method={kind: uniform}", "search=null"))
    return found


def main() -> None:
    arguments = parser_of(__doc__, "importance", (0.2, 0.5)).parse_args()
    print(table(run(arguments, contestants())))


if __name__ == "__main__":
    main()
