# SPDX-License-Identifier: Apache-2.0
"""Whether ONNX Runtime answers from a folder what transformers answers from the same weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoConfig
from transformers.cache_utils import DynamicCache

from prunec.compiler.model.errors import ModelError
from prunec.exporters.onnx_decoder import weightless
from prunec.exporters.onnx_quantize import OPERATOR
from prunec.exporters.onnx_weights import GRAPH

#: Largest difference of two logits over the largest logit: rounding, of weights that are the same.
#: Of quantised matrices the kernel rounds activations to 8 bits too.
_TOLERANCES = {"tensor(float)": 1e-4, "tensor(float16)": 2e-2, OPERATOR: 1e-1}


@dataclass(frozen=True)
class Talk:
    """Texts that are read in one batch, a piece at a time, and then continued greedily.

    pieces: tokens read at a time; padding: how many tokens of the first piece each text lacks
    """

    pieces: tuple[int, ...]
    padding: tuple[int, ...] = (0,)
    greedy: int = 0

    @property
    def tokens(self) -> int:
        return sum(self.pieces) + self.greedy


#: An empty past, one of a token, a long one; single texts and padded batches; chunks.
TALKS = (
    Talk(pieces=(7,), greedy=24),
    Talk(pieces=(1, 1)),
    Talk(pieces=(12, 5), padding=(0, 4, 11), greedy=4),
    Talk(pieces=(250,), padding=(0, 33), greedy=2),
)


class Session:
    """A folder's graph in ONNX Runtime, with the KV cache of the text that it is reading.

    Raises ModelError if ONNX Runtime cannot open it.
    """

    def __init__(self, folder: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self.runtime = onnxruntime.InferenceSession(
                folder / GRAPH, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions have no other base
            reason = str(error).strip().splitlines()[0]
            raise ModelError(f"ONNX Runtime does not open {folder / GRAPH}: {reason}") from error
        self.names = [value.name for value in self.runtime.get_outputs()]
        self.cache: dict[str, NDArray[Any]] = {}

    def start(self, batch: int) -> None:
        """Forget what was read."""
        self.cache = {}
        for value in self.runtime.get_inputs():
            if value.name.startswith("past_key_values."):
                _, heads, _, head_dim = value.shape
                kind = np.float16 if value.type == "tensor(float16)" else np.float32
                self.cache[value.name] = np.zeros((batch, heads, 0, head_dim), kind)

    def read(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """[batch, new] tokens, [batch, all] mask → [batch, new, vocabulary] logits."""
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        results = self.runtime.run(
            None, {name: tensor.numpy() for name, tensor in given.items()} | self.cache
        )
        found = dict(zip(self.names, results, strict=True))
        self.cache = {
            name: found[name.replace("past_key_values", "present")] for name in self.cache
        }
        return torch.from_numpy(found["logits"]).float()


class Reference:
    """transformers' own model of the same weights, in float32."""

    def __init__(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        config = AutoConfig.from_pretrained(folder)
        # Eager: the others leave out the soft caps of scores.
        self.model: Any = weightless(config, torch.float32, "eager")
        given = {name: tensor.float() for name, tensor in weights.items()}
        self.model.load_state_dict(given, strict=False, assign=True)
        self.model.tie_weights()
        self.vocab_size: int = config.vocab_size
        self.longest = getattr(config, "max_position_embeddings", None) or 2048
        self.cache = DynamicCache()

    def start(self) -> None:
        """Forget what was read."""
        self.cache = DynamicCache(config=self.model.config)

    @torch.no_grad()
    def read(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """As Session.read."""
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        logits: Tensor = output.logits
        return logits


def check_answers(folder: Path, weights: Mapping[str, Tensor], quantized: bool) -> None:
    """Let both read TALKS from a folder whose graph has these weights, as far as it reads so much.

    Raises ModelError unless logits agree to rounding, and greedy tokens wherever rounding cannot
    decide between two.
    """
    session, reference = Session(folder), Reference(folder, weights)
    kind = OPERATOR if quantized else session.runtime.get_outputs()[0].type
    for talk in TALKS:
        if talk.tokens > reference.longest:
            continue
        for expected, found in answers(session, reference, talk):
            allowed = _TOLERANCES[kind] * expected.abs().max()
            difference = (expected - found).abs().max()
            if not difference <= allowed:  # also when it is NaN
                raise ModelError(
                    f"{folder / GRAPH}: logits differ from transformers' by {difference:.2g}, "
                    f"reading {talk.pieces} tokens of {len(talk.padding)} texts; rounding explains "
                    f"{allowed:.2g}"
                )
            best = expected.topk(2).values
            certain = best[:, 0] - best[:, 1] > 2 * allowed
            if not torch.equal(expected.argmax(-1)[certain], found.argmax(-1)[certain]):
                raise ModelError(f"{folder / GRAPH} generates other tokens than transformers")


def answers(session: Session, reference: Reference, talk: Talk) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits [real tokens, vocabulary] of both for every piece of a talk, transformers' first."""
    batch = len(talk.padding)
    draw = torch.Generator().manual_seed(0)
    session.start(batch)
    reference.start()
    mask = torch.empty(batch, 0, dtype=torch.long)
    following: Tensor | None = None
    for piece in (*talk.pieces, *[1] * talk.greedy):
        ids = torch.randint(reference.vocab_size, (batch, piece), generator=draw)
        fresh = torch.ones(batch, piece, dtype=torch.long)
        if not mask.shape[1]:
            for row, lacking in enumerate(talk.padding):
                fresh[row, :lacking] = 0
        elif mask.shape[1] >= sum(talk.pieces):
            assert following is not None
            ids = following
        mask = torch.cat([mask, fresh], dim=1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -piece:]
        expected = reference.read(ids, mask, positions)
        found = session.read(ids, mask, positions)
        following = expected[:, -1:].argmax(-1)
        real = fresh.bool()
        yield expected[real], found[real]
