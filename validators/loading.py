# SPDX-License-Identifier: Apache-2.0
"""Opening a checkpoint folder as its user will: through transformers' Auto classes, from disk."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from prunec.validators.errors import ValidationError
from prunec.validators.headers import TensorHeader, read_header, weight_files
from prunec.validators.streaming import ON_DISK, Streamed

_transformers_log: Any = transformers_logging  # carries no types
_accelerate_log = logging.getLogger("accelerate.big_modeling")

#: Tensors that a language model computes nothing with: rotary frequencies and masks, which are made
#: from the config, and value heads, which PPO trains beside a policy.
_UNUSED = re.compile(
    r"(.+\.)?(rotary_emb\.(inv_freq|cos_cached|sin_cached)|masked_bias|position_ids)|v_head\..+"
)

#: What has to be left beside weights for what is computed with them: logits of a batch, mostly.
_LEAST_ROOM = 1 << 30


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model in eval mode, and where it came from. Dropping it frees it.

    room: bytes for what is computed, beside the weights; None where there is no limit
    streamed: the way through a model whose weights stay on disk
    """

    folder: Path
    model: Any  # a transformers PreTrainedModel; its class is the folder's choice
    device: torch.device
    trust_remote_code: bool
    room: int | None = None
    streamed: Streamed | None = None

    @property
    def vocab_size(self) -> int:
        """Token ids that the model accepts: 0 … vocab_size - 1."""
        return int(self.model.get_input_embeddings().num_embeddings)

    def logits(
        self, batches: Sequence[Tensor], on_progress: Callable[[int], None]
    ) -> Iterator[Tensor]:
        """[windows, length, vocabulary] for every batch of ids [windows, length], in order.

        `on_progress` is told how many windows are done so far.
        """
        if self.streamed is not None:
            assert self.room is not None
            yield from self.streamed.logits(batches, self.room // 2, on_progress)
            return
        done = 0
        for ids in batches:
            yield self.model(input_ids=ids, use_cache=False).logits
            done += len(ids)
            on_progress(done)

    def tokenizer(self) -> Any:
        """The folder's own tokenizer. ValidationError if it does not load."""
        return open_tokenizer(self.folder, trust_remote_code=self.trust_remote_code)


def open_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """A folder's own tokenizer, of transformers. ValidationError if it does not load."""
    try:
        return AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=trust_remote_code, local_files_only=True
        )
    except Exception as error:  # a folder's tokenizer can fail in any way
        raise ValidationError(
            f"the tokenizer of {folder} does not load: {_first_line(error)}",
            hint="the tokenizer's files belong beside the weights",
        ) from error


def open_model(
    folder: Path,
    dtype: torch.dtype,
    *,
    trust_remote_code: bool = False,
    device: str | torch.device = "cpu",
    memory: int | None = None,
) -> LoadedModel:
    """Load a checkpoint folder for measuring: safetensors only, no network, eval mode.

    memory: bytes on the device for the weights and what is computed with them. Weights that leave
        too little of it stay on disk, and are read part by part; None loads them in any case.

    ValidationError if it does not load, or loads with weights missing, left over or reshaped:
    transformers fills such gaps with random numbers, and says so in a log only.
    `trust_remote_code` runs the folder's own modeling file.
    """
    if not (folder / "config.json").is_file():
        # Without this, transformers takes the path for the name of a model on the hub.
        raise ValidationError(
            f"{folder} is not a model folder: it has no config.json",
            hint="give the folder that holds config.json and the safetensors files",
        )
    if (folder / "adapter_config.json").exists():
        raise ValidationError(
            f"{folder} holds an adapter: transformers would open the model that this one names",
            hint="merge it into the weights, or remove adapter_config.json",
        )
    device = torch.device(device)
    tensors = {} if memory is None else _headers(folder)
    weights = sum(tensor.parameters for tensor in tensors.values()) * dtype.itemsize
    streams = memory is not None and memory - weights < _LEAST_ROOM
    try:
        with _quietly():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(folder),
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                local_files_only=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # told below, by name
                output_loading_info=True,
                # A GPU is given one tensor after the other: the model need not fit beside it.
                device_map=ON_DISK if streams else None if device.type == "cpu" else {"": device},
            )
            model, info = loaded
            model = model.eval()
            if getattr(model.config, "attn_logit_softcapping", None):
                # The only kernels that cap scores: the others would leave it out without a word.
                model.set_attn_implementation("eager")
    except Exception as error:  # a folder's config, weights and code can fail in any way
        raise ValidationError(
            f"{folder} does not load: {_first_line(error)}",
            hint="`prunec inspect` says what is in the folder",
        ) from error
    if streams:  # nobody has looked at them yet
        due_shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
        info["mismatched_keys"] |= {
            (name, held.shape, due_shapes[name])
            for name, held in tensors.items()
            if name in due_shapes and held.shape != due_shapes[name]
        }
    for name, held, due in sorted(info["mismatched_keys"]):
        raise ValidationError(
            f"{folder} does not load: {name} is {list(held)}, by config.json it is {list(due)}",
            hint="`prunec inspect` says what else disagrees",
        )
    for what in ("missing", "unexpected"):
        odd = (str(name) for name in info[f"{what}_keys"])
        if names := sorted(name for name in odd if not _UNUSED.fullmatch(name)):
            raise ValidationError(
                f"{folder} loads with {len(names)} {what} tensors, the first {names[0]}",
                hint="config.json and the safetensors files are not of the same model",
            )
    streamed = Streamed(model, folder, tensors, device) if streams else None
    room = None
    if memory is not None:
        # Never nothing: the least that is computed is of one window.
        room = max(0, memory - (streamed.largest_part if streamed else weights))
    return LoadedModel(folder, model, device, trust_remote_code, room, streamed)


def _headers(folder: Path) -> dict[str, TensorHeader]:
    """The tensors of a folder's files, by name. ValidationError if these are damaged."""
    return {
        name: tensor
        for file in weight_files(folder)
        for name, tensor in read_header(folder / file).items()
    }


@contextmanager
def _quietly() -> Iterator[None]:
    # The caller draws its own progress bars; two on one terminal garble each other. And it knows
    # that weights stay on disk, which accelerate warns of, and tells of tensors that do not fit.
    were_enabled = _transformers_log.is_progress_bar_enabled()
    verbosity = _transformers_log.get_verbosity()
    _transformers_log.disable_progress_bar()
    _transformers_log.set_verbosity_error()
    level = _accelerate_log.level
    _accelerate_log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        _accelerate_log.setLevel(level)
        _transformers_log.set_verbosity(verbosity)
        if were_enabled:
            _transformers_log.enable_progress_bar()


def _first_line(error: Exception) -> str:
    first, *others = str(error).strip().splitlines() or [type(error).__name__]
    if first.rstrip().endswith(":"):  # says nothing by itself
        return " ".join(" ".join([first, *others]).split())
    return first
