# SPDX-License-Identifier: Apache-2.0
"""What a trial is worth: the pruned model on text that it was not calibrated on."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from prunec.compiler.model.decoder import Decoder
from prunec.compiler.model.layout import Layout
from prunec.compiler.model.modeling.modeling_prunec import PerLayerDecoderLayer
from prunec.compiler.model.tensor_file import save
from prunec.compiler.tuning.held_out import HeldOut, scores_of, value_of
from prunec.compiler.tuning.one_shot import OneShot
from prunec.compiler.tuning.settings import Settings
from prunec.compiler.tuning.study import Look

#: Parts of the held-out text after which a trial may be stopped.
LOOKS = (1 / 4, 1 / 2, 1)

#: What a trial's folder begins with.
FOLDER = "trial-"


@dataclass(frozen=True)
class Judge:
    """Prunes the model by a trial's settings and runs it, one layer in memory at a time.

    The layers of the trial at hand lie in `scratch` between one part of the text and the next.
    """

    decoder: Decoder
    one_shot: OneShot
    held_out: HeldOut
    scratch: Path

    @torch.no_grad()
    def looks(self, settings: Settings) -> Generator[Look, None, None]:
        """The objective on growing parts of the text: nats per token from the dense model, or
        perplexity. ModelError for settings that make no model."""
        layout = self.one_shot.layout(settings)
        windows, length = self.held_out.ids.shape
        stops = sorted({math.ceil(share * windows) for share in LOOKS})
        scores: list[Tensor] = []
        with tempfile.TemporaryDirectory(dir=self.scratch, prefix=FOLDER) as folder:
            for start, stop in zip([0, *stops], stops, strict=False):
                layers = (
                    self._loaded(Path(folder), layout)
                    if start
                    else self._pruned(Path(folder), layout, settings, keep=len(stops) > 1)
                )
                part = slice(start, stop)
                scores.append(scores_of(self.decoder, layers, self.held_out, part))
                value = value_of(scores, self.held_out)
                yield Look(value, stop * length, whole=stop == windows)

    def _pruned(
        self, folder: Path, layout: Layout, settings: Settings, *, keep: bool
    ) -> Iterator[PerLayerDecoderLayer]:
        for index, spec in enumerate(layout):
            tensors = self.decoder.layer_tensors(index)
            cut = self.one_shot.layer(index, tensors, spec, settings)
            if keep:
                save(folder / f"{index}.safetensors", cut.tensors, {})
            yield self.decoder.layer(index, spec, cut.tensors)

    def _loaded(self, folder: Path, layout: Layout) -> Iterator[PerLayerDecoderLayer]:
        for index, spec in enumerate(layout):
            tensors = load_file(folder / f"{index}.safetensors")
            yield self.decoder.layer(index, spec, tensors)
