# SPDX-License-Identifier: Apache-2.0
"""Is text that the model writes itself as good to calibrate on as text of the kind that it is for?

    python benchmarks/self_text.py --sparsity 0.5 --seeds 0 1 2 --threads 1

Prunes by `uniform` on as many tokens of each text, and prints what each costs on code and on prose.
The standard library is of the same kind as the code that judges, and prose as the prose.
"""

from __future__ import annotations

from contest import Contestant, parser_of, run, table
from texts import listed, prose

UNIFORM = ("method={kind: uniform}", "search=null")


def sources() -> dict[str, str]:
    """Of every contestant: its `calibration.source`."""
    fitting, _ = prose()
    code, own = "{kind: python_stdlib}", "{kind: self}"
    return {
        "code (standard library)": code,
        "prose": listed(fitting),
        "self-written": own,
        "self-written, temperature 0.8": "{kind: self, temperature: 0.8}",
        "self-written and code": f"{{kind: mix, parts: {{self: {{source: {own}}}, "
        f"code: {{source: {code}}}}}}}",
    }


def main() -> None:
    arguments = parser_of(__doc__, "self_text", (0.5,)).parse_args()
    contestants = {
        name: Contestant((*UNIFORM, f"calibration.source={source}"))
        for name, source in sources().items()
    }
    print(table(run(arguments, contestants)))


if __name__ == "__main__":
    main()
