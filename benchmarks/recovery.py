# SPDX-License-Identifier: Apache-2.0
"""Recovery at equal tokens: adapters on labels, on the dense model's distributions, blocks.

    python benchmarks/recovery.py --sparsity 0.5 --seeds 0 1 2 --threads 1

Prunes by `uniform`, then trains back on the same number of tokens in each way. Prints the loss
above the dense model's on code, on prose, and how much of the gap that pruning left is closed.
"""

from __future__ import annotations

import math
import statistics

from contest import Contestant, Result, parser_of, run, table

UNIFORM = ("method={kind: uniform}", "search=null")

WAYS = {
    "none": "null",
    "LoRA, labels": "{kind: lora, labels: 1, divergence: 0, tokens: TOKENS}",
    "LoRA, divergence": "{kind: lora, tokens: TOKENS}",
    "LoRA, both": "{kind: lora, labels: 1, divergence: 1, tokens: TOKENS}",
    "LoRA, divergence and hidden states": "{kind: lora, hidden: 1, tokens: TOKENS}",
    "LoRA, divergence, ranks by importance": "{kind: lora, ranks: importance, tokens: TOKENS}",
    "block-wise": "{kind: blockwise, tokens: TOKENS}",
}


def closed(results: list[Result]) -> str:
    """Of every way, the share of the gap in perplexity that it closes, seed by seed."""
    lines = [
        "| sparsity | recovery | perplexity gap closed, code | perplexity gap closed, prose |",
        "|---|---|---|---|",
    ]
    left = {(r.sparsity, r.seed): r for r in results if r.contestant == "none"}
    for sparsity in dict.fromkeys(result.sparsity for result in results):
        for name in WAYS:
            rows = [r for r in results if r.contestant == name and r.sparsity == sparsity]
            pairs = [(left[r.sparsity, r.seed], r) for r in rows if (r.sparsity, r.seed) in left]
            if name == "none" or not pairs:
                continue
            cells = []
            for column in ("code", "prose"):
                gaps = [(_gap(none, column), _gap(r, column)) for none, r in pairs]
                shares = [1 - after / before for before, after in gaps]
                each = ", ".join(f"{share:.0%}" for share in shares)
                cells.append(f"{statistics.median(shares):.0%} ({each})")
            lines.append(f"| {sparsity:.1%} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _gap(result: Result, column: str) -> float:
    """By how much perplexity is above the dense model's, over that."""
    return math.expm1(getattr(result, column))


def main() -> None:
    parser = parser_of(__doc__, "recovery", (0.5,))
    parser.add_argument("--tokens", type=int, default=524_288, help="that recovery trains on")
    arguments = parser.parse_args()
    contestants = {
        name: Contestant((*UNIFORM, f"recover={way.replace('TOKENS', str(arguments.tokens))}"))
        for name, way in WAYS.items()
    }
    results = run(arguments, contestants)
    print(f"{table(results)}\n\n{closed(results)}")


if __name__ == "__main__":
    main()
