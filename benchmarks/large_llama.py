# SPDX-License-Identifier: Apache-2.0
"""A part of the benchmarks: checkpoints of random weights in the shapes of Llama 3, of any depth.

    python benchmarks/large_llama.py --shape 8B --layers 32 --into /tmp/llama-8b

Written a tensor at a time, so that memory is no matter. The tokenizer is pytiny's, whose tokens are
the first of the larger vocabulary. Weights are drawn as an untrained model's, with MLP neurons and
heads of unlike size, so that there is something to choose.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunec.compiler.model.checkpoint import write_checkpoint
from prunec.compiler.model.facts import facts_from_config
from prunec.compiler.model.layout import dense_layout, tensor_shapes
from prunec.compiler.model.tensor_file import TensorSpec

ROOT = Path(__file__).resolve().parent.parent
PYTINY = ROOT / "examples" / "pytiny"

#: hidden size, MLP width, query heads, KV heads, head size, layers, tied embeddings: facts from the
#: models' published configs.
SHAPES: dict[str, tuple[int, int, int, int, int, int, bool]] = {
    "1B": (2048, 8192, 32, 8, 64, 16, True),
    "3B": (3072, 8192, 24, 8, 128, 28, True),
    "8B": (4096, 14336, 32, 8, 128, 32, False),
}


def config_of(shape: str, layers: int | None = None, vocab_size: int = 128_256) -> dict[str, Any]:
    """The config.json of a shape, as deep as it is published or as is asked for."""
    hidden, ffn, heads, kv_heads, head_dim, depth, tied = SHAPES[shape]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "dtype": "bfloat16",
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "max_position_embeddings": 8192,
        "mlp_bias": False,
        "num_attention_heads": heads,
        "num_hidden_layers": layers or depth,
        "num_key_value_heads": kv_heads,
        "pad_token_id": None,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": 500_000.0, "rope_type": "default"},
        "tie_word_embeddings": tied,
        "vocab_size": vocab_size,
    }


def write(folder: Path, config: dict[str, Any], seed: int = 0) -> None:
    """Write the checkpoint, in shards of 2 GiB, into a folder that is not there yet."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(PYTINY / name, partial / name)
    (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    facts = facts_from_config(config)
    shapes = tensor_shapes(facts, dense_layout(facts))
    specs = {name: TensorSpec(torch.bfloat16, shape) for name, shape in shapes.items()}
    write_checkpoint(partial, specs, _tensors(shapes, seed), 2 * 2**30)
    partial.rename(folder)


def _tensors(shapes: Mapping[str, tuple[int, ...]], seed: int) -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for name, shape in shapes.items():
        if len(shape) == 1:
            yield name, torch.ones(shape, dtype=torch.bfloat16)
            continue
        weight = torch.empty(shape, dtype=torch.bfloat16)
        for rows in weight.split(2**24 // shape[1] + 1):
            rows.normal_(std=1 / math.sqrt(shape[1]), generator=generator)
        if name.endswith("up_proj.weight"):
            weight *= torch.empty(shape[0], 1).log_normal_(std=0.5, generator=generator)
        yield name, weight


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="1B")
    parser.add_argument("--layers", type=int, help="instead of the published depth")
    parser.add_argument("--vocabulary", type=int, default=128_256)
    parser.add_argument("--into", type=Path, required=True)
    arguments = parser.parse_args()
    write(arguments.into, config_of(arguments.shape, arguments.layers, arguments.vocabulary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
