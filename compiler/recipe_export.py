# SPDX-License-Identifier: Apache-2.0
"""What a recipe may have written: the formats and their settings.

Imported through `prunec.compiler.recipe`, which is the whole contract.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from prunec.compiler.recipe_sizes import ShardSize
from prunec.compiler.recipe_sources import Section


class HfExport(Section):
    """A Hugging Face checkpoint: safetensors, config, tokenizer, model card."""

    kind: Literal["hf"] = Field(description="The format that is written.")
    max_shard_bytes: ShardSize = Field(
        default=5_000_000_000,
        description="A safetensors file larger than this is split: bytes, or `5GB`.",
    )


class VllmExport(Section):
    """A folder that `vllm serve` opens, safetensors as in the Hugging Face checkpoint."""

    kind: Literal["vllm"] = Field(description="The format that is written.")
    dialect: Literal["plugin", "decilm"] = Field(
        default="plugin",
        description="How layers of different shapes are said. `plugin`: exactly; vLLM finds the "
        "model's class where prunec is installed. `decilm`: as vLLM's stock DeciLM, with query "
        "heads filled up with zeros to one number for all layers; needs no prunec where it is "
        "served, but `--trust-remote-code` for a configuration file.",
    )
    tensor_parallel: int = Field(
        default=1,
        ge=1,
        description="GPUs that a layer is to be split over: query heads and FFN widths stay "
        "multiples of it, KV heads divide it or are multiples of it.",
    )
    max_shard_bytes: ShardSize = Field(
        default=5_000_000_000,
        description="A safetensors file larger than this is split: bytes, or `5GB`.",
    )


class OnnxExport(Section):
    """A folder for ONNX Runtime and onnxruntime-genai: a graph with a KV cache, its weights."""

    kind: Literal["onnx"] = Field(description="The format that is written.")
    precision: Literal["float32", "float16", "int8", "int4"] = Field(
        default="float32",
        description="What the weights are stored as, whatever model.dtype. `int8` and `int4` are "
        "of the matrices only, in blocks of 32 with a scale each; all else is float32 then.",
    )


Export = Annotated[HfExport | VllmExport | OnnxExport, Field(discriminator="kind")]
