# SPDX-License-Identifier: Apache-2.0
"""Carry out a plan: each step once, its result from the store where there is one; then the report.

The output folder looks finished only when it is: `manifest.json` is removed before anything
changes and written last.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from prunec.compiler.calibration.sources import SourceError
from prunec.compiler.dense_model import remember
from prunec.compiler.diagnostics import BuildError
from prunec.compiler.measured import FinishedStep
from prunec.compiler.model.errors import ModelError
from prunec.compiler.output_folder import (
    DEFAULT_RECIPE,
    REPORT,
    SCRATCH,
    OutputFolder,
    old_folder,
    partial_folder,
)
from prunec.compiler.peak import forget_peak, peak_rss_bytes
from prunec.compiler.plan import Step
from prunec.compiler.progress import Narrator
from prunec.compiler.reporting import report_of
from prunec.compiler.steps import RUNNERS
from prunec.compiler.steps.context import Context, Summary
from prunec.compiler.steps.export import (
    card_is_edited,
    describe_source,
    export_is_intact,
    export_is_of,
    folder_digests,
    write_card,
)
from prunec.compiler.steps.finalists import finalists_in_words
from prunec.compiler.steps.recover import recovered_in_words
from prunec.compiler.steps.tune import tuned_in_words
from prunec.compiler.store import Entry, LostResultError, file_sha256, write_text
from prunec.compiler.subject import stamps
from prunec.compiler.verdict import is_lost
from prunec.exporters import EXPORTERS
from prunec.validators.card import TITLE, measured_section
from prunec.validators.errors import ValidationError
from prunec.validators.manifest import CARD, MANIFEST
from prunec.validators.report import LM_EVAL, append_step_summary, write_report
from prunec.validators.results import Report

#: Kinds of steps that all workers do together; all others are the first one's.
SHARED = ("supernet", "resolve", "search")

#: What PyTorch says where an allocation or a mapping failed, as a RuntimeError.
_NO_MEMORY = re.compile(r"(can't|cannot) allocate memory", re.IGNORECASE)

_GO_ON = "finished steps are kept; put it right and run the same command again"


def build(
    context: Context, name: str, command: str, narrator: Narrator, *, fresh: bool = False
) -> Report:
    """Run what is missing of a plan and write the output folder. Raises BuildError.

    `name` is the recipe's, `command` what makes the same again; `fresh` forgets what earlier builds
    have stored. One build at a time works on an output folder.
    """
    place = OutputFolder(context.output, context.store.root)
    try:
        place.check_place()
        context.output.mkdir(parents=True, exist_ok=True)
        with locked(context.output):
            place.check(*_exports(context, fresh=fresh))
            _remove_leftovers(context.output)
            if fresh:
                context.store.clear()
            context.store.root.mkdir(exist_ok=True)
            remember(context.store.root, context.recipe.model, context.subject)
            watch = Watch(context)
            context.workers.tell({}, {"plan": context.plan.fingerprint}, 0)
            done = _run_all(context, narrator, watch)
            context.workers.tell({}, {"step": None}, 0)
            _remove_leftovers(context.output)
            report = report_of(context, name, command, done)
            _publish(context, name, report, done, narrator)
        append_step_summary(report)
    except OSError as error:
        raise BuildError(_os_sentence(error), hint=_GO_ON) from error
    return report


def locked(output: Path) -> FileLock:
    """A lock on the output folder, which is held."""
    lock = FileLock(output / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BuildError(
            f"another build is writing to {output}",
            hint="wait for it, or choose another --output",
        ) from None
    return lock


def _exports(context: Context, *, fresh: bool) -> tuple[list[str], list[str]]:
    """The kinds of exports that a build writes, and those of them that it has written already."""
    steps = [step for step in context.plan.steps if step.kind == "export"]
    kept = []
    for step in () if fresh else steps:
        saved = context.store.entry(step.fingerprint).record()
        if saved and export_is_of(context, saved["found"]):
            kept.append(step.params["kind"])
    return [step.params["kind"] for step in steps], kept


class Watch:
    """Sees whether the checkpoint is still the one that was planned with, while it is read."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.stamps = stamps(context.folder)
        self.made: list[Entry] = []

    def check(self) -> None:
        """BuildError if a file of the checkpoint was written to since; what was made of it goes."""
        try:
            changed = stamps(self.context.folder) != self.stamps
        except (ModelError, OSError):
            changed = True
        if changed:
            for entry in self.made:
                entry.discard()
            raise BuildError(
                f"{self.context.folder} was changed while the build was reading it",
                hint="what this run had made of it is discarded; run the same command again",
            )


def _run_all(context: Context, narrator: Narrator, watch: Watch) -> dict[str, FinishedStep]:
    """Every step in order, or up to where the recipe gives up; once more from the start where an
    earlier result turns out damaged."""
    remade: set[Path] = set()
    while True:
        done: dict[str, FinishedStep] = {}
        try:
            for number, step in enumerate(context.plan.steps, start=1):
                label = f"[{number}/{len(context.plan.steps)}] {step.name}"
                done[step.name] = _run(context, step, narrator, label, watch)
                if is_lost(context.recipe.validation, context.plan, step, done[step.name].summary):
                    narrator.say(f"{label}: the recipe gives up here (validate.abort_if)")
                    break
            return done
        except LostResultError as lost:
            if context.workers.size > 1:  # the others may be anywhere in the step that missed it
                lost.entry.reopen()
                raise BuildError(str(lost), hint="the same command makes it again") from None
            if lost.entry.folder in remade:
                raise BuildError(str(lost), hint="check the disk; --fresh starts over") from None
            remade.add(lost.entry.folder)
            lost.entry.reopen()
            narrator.say(f"{lost}; making it again")


def _remove_leftovers(output: Path) -> None:
    """What a killed build was writing, and what it had set aside for it."""
    for kind in EXPORTERS:
        shutil.rmtree(partial_folder(output, kind), ignore_errors=True)
        shutil.rmtree(old_folder(output, kind), ignore_errors=True)
    shutil.rmtree(output / SCRATCH, ignore_errors=True)


def _run(
    context: Context, step: Step, narrator: Narrator, label: str, watch: Watch
) -> FinishedStep:
    entry = context.store.entry(step.fingerprint)
    saved = entry.record()
    if saved and (step.kind != "export" or export_is_intact(context, step, saved["found"])):
        narrator.say(f"{label}: reused")
        return FinishedStep(saved["found"], saved["seconds"], saved["peak_rss_bytes"], reused=True)
    watch.made.append(entry)
    watch.check()  # an export that is found intact is not replaced by one of another model
    if step.kind == "export":
        there = context.artefact(step)
        if saved and card_is_edited(context, step):
            raise BuildError(
                f"{there} is not as it was written, and its {CARD} was edited",
                hint=f"move {CARD} away, and the same command writes the rest again",
            )
        (context.output / MANIFEST).unlink(missing_ok=True)
        if there.exists():
            narrator.say(f"{label}: replaces {there}, which an earlier build wrote")
    began = time.monotonic()
    forget_peak()
    try:
        with _in_a_sentence(step):
            with narrator.step(label) as progress:
                if step.kind in SHARED:
                    context.workers.tell({}, {"step": step.name}, 0)
                found = RUNNERS[step.kind](context, step, entry, progress)
            watch.check()
            done = FinishedStep(found, time.monotonic() - began, peak_rss_bytes(), reused=False)
            entry.finish(
                {"found": found, "seconds": done.seconds, "peak_rss_bytes": done.peak_rss_bytes}
            )
    finally:
        context.release()
    narrator.say(f"{label}: {_headline(step, found)} ({done.seconds:.1f} s)")
    return done


@contextmanager
def _in_a_sentence(step: Step) -> Iterator[None]:
    """What may go wrong in a step through no fault of the code's, as a BuildError."""
    try:
        yield
    except (ModelError, SourceError, ValidationError) as error:
        raise BuildError(f"{step.name}: {error.message}", hint=error.hint) from error
    except torch.OutOfMemoryError as error:
        raise BuildError(
            f"{step.name}: the GPU is out of memory",
            hint="set resources.gpu_memory to what is free there, and the plan keeps to it; "
            "finished steps are kept",
        ) from error
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and _NO_MEMORY.search(str(error)) is None:
            raise
        raise BuildError(
            f"{step.name}: out of memory",
            hint="set resources.memory to what is free, and the plan keeps to it; finished steps "
            "are kept",
        ) from error
    except OSError as error:
        raise BuildError(f"{step.name}: {_os_sentence(error)}", hint=_GO_ON) from error


def follow(context: Context) -> None:
    """Do this worker's share of the steps that the first one begins, until it has ended them all.

    BuildError where it is of another build; WorkerLostError if the first one is gone.
    """
    _, led = context.workers.tell({}, {}, 0)
    if led["plan"] != context.plan.fingerprint:
        raise BuildError(
            "its recipe or its model is not the first worker's",
            hint="all machines need the same files in the same places",
        )
    while (said := context.workers.tell({}, {}, 0)[1])["step"] is not None:
        step = context.plan.step(said["step"])
        try:
            with _in_a_sentence(step):
                RUNNERS[step.kind](context, step, context.store.entry(step.fingerprint), _silent)
        except LostResultError as lost:  # its file system shows it something else
            raise BuildError(str(lost), hint="all machines need the same --output") from lost
        context.release()


def _silent(done: int, of: int, note: str) -> None:
    """The first worker tells of all of them."""


def _os_sentence(error: OSError) -> str:
    """What the system says, and of which file."""
    sentence = error.strerror or str(error)
    return f"{sentence}: {error.filename}" if error.filename else sentence


def _headline(step: Step, found: Summary) -> str:
    """A step's result in one line."""
    if step.kind == "tokens":
        empty = found["skipped"]
        skipped = f", {empty:,} empty document{'s' * (empty > 1)} skipped" if empty else ""
        return f"{found['tokens']:,} tokens of {describe_source(step.params['source'])}{skipped}"
    if step.kind in ("generate", "mixture"):
        return f"{found['tokens']:,} tokens, {describe_source(step.params['source'])}"
    if step.kind == "statistics":
        number = len(found["groups"])
        groups = f"{number} group{'s' * (number > 1)} of windows"
        return f"{groups}, {found['token_forwards']:,} token-forwards"
    if step.kind in ("search", "published-search"):
        first, last = found["history"][0], found["history"][-1]
        return (
            f"divergence {first['divergence']:.4f} → {last['divergence']:.4f} nats/token in "
            f"{last['generation']} generations, {found['token_forwards']:,} token-forwards"
        )
    if step.kind in ("supernet", "resolve", "published-layers"):
        return f"{len(found['layout'])} layers"
    if step.kind == "tune":
        return tuned_in_words(found["tuning"])
    if step.kind == "finalists":
        return finalists_in_words(found)
    if step.kind == "chosen":
        return f"{found['tokens']:,} tokens"
    if step.kind == "recover":
        return recovered_in_words(found)
    if step.kind == "export":
        return f"{found['parameters']:,} parameters, {found['weight_bytes']:,} bytes of weights"
    if step.kind == "measure" and found["texts"]:
        return "perplexity " + ", ".join(f"{text['value']:.3f}" for text in found["texts"].values())
    return step.why


def _model_source(context: Context) -> str:
    """The dense model: a hub id, or the name of its folder, never the place of it."""
    model = context.recipe.model
    return Path(model.source).name if model.folder else model.source


def _is_own(context: Context, recipe: Path) -> bool:
    """Whether `validate` has written a recipe into its output, and runs it."""
    given = any(step.kind == "artefact" for step in context.plan.steps)
    return given and recipe.is_file() and context.base.resolve() == context.output.resolve()


def _publish(
    context: Context,
    name: str,
    report: Report,
    done: Mapping[str, FinishedStep],
    narrator: Narrator,
) -> None:
    """Write the report, with what lm-eval wrote beside it, then the manifest of everything."""
    output = context.output
    (output / MANIFEST).unlink(missing_ok=True)
    exports = [step for step in context.plan.steps if step.kind == "export"]
    exported = [step for step in exports if step.name in done]
    for step in exports:
        if step not in exported:  # given up: an earlier build's would pass for this one's
            shutil.rmtree(context.artefact(step), ignore_errors=True)
    told = write_report(report, output / REPORT)
    shutil.rmtree(output / REPORT / LM_EVAL, ignore_errors=True)
    for step in context.plan.steps:
        if step.kind == "tasks" and step.name in done:
            written = context.store.entry(step.fingerprint).folder / LM_EVAL
            copy = output / REPORT / LM_EVAL / step.name.removeprefix("tasks-")
            if written.is_dir():
                shutil.copytree(written, copy)
    told += [path for path in (output / REPORT / LM_EVAL).rglob("*") if path.is_file()]
    for step in exported:
        if not write_card(context, step, {TITLE: measured_section(report)}):
            card = context.artefact(step) / CARD
            narrator.say(f"{card} was edited and is kept: it does not tell this verdict")
    told += [path for path in (output / DEFAULT_RECIPE,) if _is_own(context, path)]
    digests = {path: file_sha256(path) for path in told}
    for step in exported:
        folder = context.artefact(step)
        digests |= {folder / path: sha256 for path, sha256 in folder_digests(folder).items()}
    files = {
        path.relative_to(output).as_posix(): {"sha256": sha256, "bytes": path.stat().st_size}
        for path, sha256 in digests.items()
    }
    manifest = {
        "fingerprint": context.plan.fingerprint,
        "recipe": name,
        "model": {"source": _model_source(context), "commit": context.subject.commit},
        "exit_code": 0 if report.passed else 1,
        "versions": {"prunec": report.prunec_version, **report.versions},
        "steps": {step.name: step.fingerprint for step in context.plan.steps},
        "files": files,
    }
    write_text(output / MANIFEST, json.dumps(manifest, indent=2) + "\n")
