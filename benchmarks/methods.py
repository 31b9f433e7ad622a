# SPDX-License-Identifier: Apache-2.0
"""The methods on one recipe: what does the search gain, what choosing units one by one, what
refitting?

    python benchmarks/methods.py --sparsity 0.25 0.375 0.5 --seeds 0 1 2 --threads 1

Prints a Markdown table of the loss above the dense model's, on code and on prose.
"""

from __future__ import annotations

from contest import Contestant, parser_of, run, table

METHODS = {
    "tyr": Contestant(("method={kind: tyr}",), searches=True),
    "uniform": Contestant(("method={kind: uniform}", "search=null")),
    "importance": Contestant(("method={kind: importance}", "search=null")),
    "importance, no refit": Contestant(("method={kind: importance, refit: false}", "search=null")),
    "magnitude": Contestant(
        ("method={kind: magnitude}", "search=null", "calibration=null"), seeded=False
    ),
}


def main() -> None:
    arguments = parser_of(__doc__, "methods", (0.25, 0.375, 0.5)).parse_args()
    print(table(run(arguments, METHODS)))


if __name__ == "__main__":
    main()
