# SPDX-License-Identifier: Apache-2.0
"""How fast a machine does each kind of work, as `prunec profile --machine` measured it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prunec import recipes
from prunec.compiler.diagnostics import Diagnostic, UserError, printable
from prunec.compiler.plan import Cost, Work


@dataclass(frozen=True)
class Machine:
    """rates: operations or bytes of each kind of work that it does in a second
    measured_on: the hardware, its threads and the libraries
    """

    name: str
    measured_on: Mapping[str, Any]
    rates: Mapping[Work, float]

    def seconds(self, cost: Cost) -> float:
        """What a step takes, one kind of work after the other."""
        return sum(count / self.rates[kind] for kind, count in cost.work.items())

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def find(cls, given: Path) -> Machine:
        """The machine in a file, or a shipped one by its name. UserError if there is none."""
        path = given
        if not given.exists() and given.parent == Path() and not given.suffix:
            path = recipes.folder() / "machines" / f"{given.name}.json"
        try:
            read = json.loads(path.read_text(encoding="utf-8"))
            rates = {Work(kind): float(rate) for kind, rate in read["rates"].items()}
            machine = cls(str(read["name"]), dict(read["measured_on"]), rates)
        except FileNotFoundError:
            names = sorted(file.stem for file in (recipes.folder() / "machines").glob("*.json"))
            raise UserError(
                Diagnostic(
                    f"--machine {printable(str(given))}: there is no such machine",
                    hint=f"prunec profile --machine FILE measures one; known: {', '.join(names)}",
                )
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            machine = None
        if machine is None or set(machine.rates) != set(Work) or min(machine.rates.values()) <= 0:
            raise UserError(
                Diagnostic(
                    f"--machine {printable(str(given))}: this is no profile of a machine",
                    hint="measure it with prunec profile --machine FILE",
                )
            )
        return machine
