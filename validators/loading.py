# SPDX-License-Identifier: Apache-2.0
"""Opening a checkpoint folder as its user will: through transformers' Auto classes, from disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from prunec.validators.errors import ValidationError

_transformers_log: Any = logging  # carries no types


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model in eval mode, and where it came from. Dropping it frees it."""

    folder: Path
    model: Any  # a transformers PreTrainedModel; its class is the folder's choice
    device: torch.device
    trust_remote_code: bool

    @property
    def vocab_size(self) -> int:
        """Token ids that the model accepts: 0 … vocab_size - 1."""
        return int(self.model.get_input_embeddings().num_embeddings)

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
) -> LoadedModel:
    """Load a checkpoint folder for measuring: safetensors only, no network, eval mode.

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
    try:
        with _without_progress_bars():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(folder),
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                local_files_only=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # told below, by name
                output_loading_info=True,
            )
            model, info = loaded
            model = model.to(device).eval()
            if getattr(model.config, "attn_logit_softcapping", None):
                # The only kernels that cap scores: the others would leave it out without a word.
                model.set_attn_implementation("eager")
    except Exception as error:  # a folder's config, weights and code can fail in any way
        raise ValidationError(
            f"{folder} does not load: {_first_line(error)}",
            hint="`prunec inspect` says what is in the folder",
        ) from error
    for name, held, due in sorted(info["mismatched_keys"]):
        raise ValidationError(
            f"{folder} does not load: {name} is {list(held)}, by config.json it is {list(due)}",
            hint="`prunec inspect` says what else disagrees",
        )
    for what in ("missing", "unexpected"):
        if names := sorted(str(name) for name in info[f"{what}_keys"]):
            raise ValidationError(
                f"{folder} loads with {len(names)} {what} tensors, the first {names[0]}",
                hint="config.json and the safetensors files are not of the same model",
            )
    return LoadedModel(folder, model, torch.device(device), trust_remote_code)


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    # The caller draws its own; two on one terminal garble each other.
    were_enabled = _transformers_log.is_progress_bar_enabled()
    _transformers_log.disable_progress_bar()
    try:
        yield
    finally:
        if were_enabled:
            _transformers_log.enable_progress_bar()


def _first_line(error: Exception) -> str:
    first, *others = str(error).strip().splitlines() or [type(error).__name__]
    if first.rstrip().endswith(":"):  # says nothing by itself
        return " ".join(" ".join([first, *others]).split())
    return first
