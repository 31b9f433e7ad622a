# SPDX-License-Identifier: Apache-2.0
"""What a trial is worth: the pruned model on text that it was not calibrated on."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor

from prunec.compiler.model.decoder import Decoder
from prunec.compiler.model.layout import Layout
from prunec.compiler.model.modeling.modeling_prunec import PerLayerDecoderLayer
from prunec.compiler.model.tensor_file import save
from prunec.compiler.passes.nested import CutLayer
from prunec.compiler.tuning.held_out import HeldOut, scores_of, value_of
from prunec.compiler.tuning.settings import Settings
from prunec.compiler.tuning.study import Look

#: Parts of the held-out text after which a trial may be stopped.
LOOKS = (1 / 4, 1 / 2, 1)

#: What a trial's folder begins with.
FOLDER = "trial-"


class Trial(Protocol):
    """How settings become a model."""

    def layout(self, settings: Settings) -> Layout: ...

    def prune(
        self,
        decoder: Decoder,
        settings: Settings,
        layout: Layout,
        save: Callable[[int, CutLayer], None],
    ) -> int:
        """Gives every layer to `save`; returns token-forwards."""
        ...


@dataclass(frozen=True)
class Judge:
    """Prunes the model by a trial's settings and runs it, one layer in memory at a time.

    The layers of the trial at hand lie in `scratch`.
    """

    decoder: Decoder
    trial: Trial
    held_out: HeldOut
    scratch: Path

    @torch.no_grad()
    def looks(self, settings: Settings) -> Generator[Look, None, None]:
        """The objective on growing parts of the text: nats per token from the dense model, or
        perplexity. ModelError for settings that make no model."""
        layout = self.trial.layout(settings)
        windows, length = self.held_out.ids.shape
        stops = sorted({math.ceil(share * windows) for share in LOOKS})
        scores: list[Tensor] = []
        with tempfile.TemporaryDirectory(dir=self.scratch, prefix=FOLDER) as folder:
            keep = partial(_save, Path(folder))
            spent = self.trial.prune(self.decoder, settings, layout, keep)
            for start, stop in zip([0, *stops], stops, strict=False):
                layers, part = self._loaded(Path(folder), layout), slice(start, stop)
                scores.append(scores_of(self.decoder, layers, self.held_out, part))
                value = value_of(scores, self.held_out)
                yield Look(value, spent + stop * length, whole=stop == windows)

    def _loaded(self, folder: Path, layout: Layout) -> Iterator[PerLayerDecoderLayer]:
        for index, spec in enumerate(layout):
            yield self.decoder.layer(index, spec, load_file(_file(folder, index)))


def _save(folder: Path, index: int, cut: CutLayer) -> None:
    save(_file(folder, index), cut.tensors, {})


def _file(folder: Path, index: int) -> Path:
    return folder / f"{index}.safetensors"
