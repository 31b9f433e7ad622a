# SPDX-License-Identifier: Apache-2.0
"""What the steps of a build share, and how they read each other's results."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from prunec.compiler.allocator import give_back
from prunec.compiler.diagnostics import BuildError
from prunec.compiler.model.checkpoint import Checkpoint
from prunec.compiler.model.decoder import Decoder
from prunec.compiler.model.layout import Layout, layout_from_plain
from prunec.compiler.model.layout import plain_layout as plain_layout
from prunec.compiler.model.placement import ROOMY, Placement
from prunec.compiler.model.special_ids import (
    SpecialIds,
    check_ids,
    generation_config,
    no_end_of_text,
    settle_special_ids,
)
from prunec.compiler.passes.workers import ALONE, Workers
from prunec.compiler.placing import Limits
from prunec.compiler.plan import Plan, Step
from prunec.compiler.plan_builder import Subject
from prunec.compiler.recipe import Recipe
from prunec.compiler.store import Entry, Store

_CPU = torch.device("cpu")

#: Called with (done, of, note) while a step runs.
Progress = Callable[[int, int, str], None]

Summary = dict[str, Any]

#: Kinds of steps that search for a layout.
SEARCHES = ("search", "published-search")


@dataclass(frozen=True)
class Context:
    """What the steps of one build share."""

    recipe: Recipe
    recipe_text: str
    base: Path  # the recipe's folder
    folder: Path  # the dense model's checkpoint
    output: Path
    subject: Subject
    plan: Plan
    store: Store
    device: torch.device = _CPU
    placement: Placement = ROOMY
    workers: Workers = ALONE
    limits: Limits | None = None

    def entry(self, step: Step, role: str) -> Entry:
        """What the step that plays a role among a step's inputs has made."""
        return self.store.entry(self.plan.step(step.inputs[role]).fingerprint)

    def found(self, step: Step, role: str) -> Summary:
        """The summary of the step that plays a role among a step's inputs; steps run in order."""
        return self.entry(step, role).found()

    def artefact(self, made: Step) -> Path:
        """Where the artefact lies that a step writes, or that was given to it."""
        if made.kind == "artefact":
            return Path(made.params["folder"])
        return self.output / str(made.params["kind"])

    def ids(self, step: Step, role: str = "tokens") -> Tensor:
        """[windows, length] token ids that a step reads."""
        return self.entry(step, role).require_tensors("ids")[0]["ids"]

    @cached_property
    def decoder(self) -> Decoder:
        dtype = getattr(torch, self.recipe.model.dtype)
        checkpoint = Checkpoint(self.folder, self.subject.facts)
        return Decoder(checkpoint, dtype, self.device, self.placement)

    def release(self) -> None:
        """Let go of what the next step may do without, see `Decoder.release`."""
        if "decoder" in vars(self):
            self.decoder.release()
        give_back()

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        try:
            return AutoTokenizer.from_pretrained(str(self.folder), local_files_only=True)
        except Exception as error:  # a folder's tokenizer can fail in any way
            reason = " ".join(str(error).split()) or type(error).__name__
            raise BuildError(f"the tokenizer in {self.folder} does not load: {reason}") from error

    @cached_property
    def special_ids(self) -> SpecialIds:
        """The dense model's, as its tokenizer and its configs name them."""
        named = self.tokenizer
        return settle_special_ids(
            self.subject.facts.config,
            generation_config(self.folder),
            bos=named.bos_token_id,
            eos=named.eos_token_id,
            pad=named.pad_token_id,
        )

    @property
    def end_id(self) -> int:
        """What is put between documents. BuildError, ModelError where there is no such token."""
        end = self.special_ids.end
        if end is None:
            raise BuildError(*no_end_of_text(self.folder))
        self.check_ids([end])
        return end

    def check_ids(self, ids: Iterable[int]) -> None:
        """ModelError for a token of a text that the dense model has no embedding for."""
        check_ids(ids, self.subject.facts.vocab_size, self._token)

    def _token(self, id_: int) -> str:
        return str(self.tokenizer.convert_ids_to_tokens(id_))


def chosen_by(context: Context, step: Step, role: str) -> Summary:
    """What the step in a role has chosen: the best, or what came in at the place `rank`."""
    found = context.found(step, role)
    if "rank" not in step.params:
        return found
    finalist: Summary = found["finalists"][step.params["rank"]]
    return finalist


def layout_of(context: Context, step: Step, role: str) -> Layout:
    """A layout from a step's parameters, or from the search that plays the role in its inputs."""
    plain = chosen_by(context, step, role)["layout"] if role in step.inputs else step.params[role]
    return layout_from_plain(plain, context.subject.facts.head_dim)
