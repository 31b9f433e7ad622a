# SPDX-License-Identifier: Apache-2.0
"""Are the layers of a large build those that a plain reference computes?

    python benchmarks/large_reference.py --model /tmp/8b/model --build /tmp/8b/build-refit

For some layers of a Llama that was pruned with a refit and no dense target: hidden states are sent
through the layers of the artefact before it by float32 arithmetic written out here, which units
stayed is told by which rows of the dense weights there are, and the output and down projections are
solved anew in float64. Prints how far the artefact's are from them, as outputs on the calibration
text and relative to the size of those; the artefact's own rounding is about 0.002.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor


class Folder:
    """A checkpoint, read a tensor at a time as float32."""

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self._place: dict[str, Path] = {}
        for path in folder.glob("*.safetensors"):
            with safe_open(path, framework="pt") as file:
                self._place |= dict.fromkeys(file.keys(), path)

    def get(self, name: str) -> Tensor:
        with safe_open(self._place[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor.float()

    def layer(self, index: int, name: str) -> Tensor:
        return self.get(f"model.layers.{index}.{name}.weight")


def normed(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return weight * hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + epsilon)


def turned(heads: Tensor, theta: float) -> Tensor:
    """Rotary positions: [windows, heads, length, size]."""
    length, size = heads.shape[-2:]
    rates = theta ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * rates
    cos, sin = torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()
    first, second = heads.chunk(2, dim=-1)
    return heads * cos.float() + torch.cat([-second, first], -1) * sin.float()


def before_output(model: Folder, index: int, hidden: Tensor) -> Tensor:
    """[windows, length, heads * size]: what reaches the output projection."""
    config, size = model.config, model.config["head_dim"]
    normal = normed(hidden, model.layer(index, "input_layernorm"), config["rms_norm_eps"])
    windows, length = hidden.shape[:2]

    def heads(name: str) -> Tensor:
        projected = normal @ model.layer(index, f"self_attn.{name}").T
        return projected.view(windows, length, -1, size).transpose(1, 2)

    theta = config["rope_parameters"]["rope_theta"]
    query, key, value = (
        turned(heads("q_proj"), theta),
        turned(heads("k_proj"), theta),
        heads("v_proj"),
    )
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(-1, -2) / math.sqrt(size)
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    mixed = scores.masked_fill(future, -torch.inf).softmax(-1) @ value
    return mixed.transpose(1, 2).reshape(windows, length, -1)


def before_down(model: Folder, index: int, hidden: Tensor) -> Tensor:
    """[windows, length, neurons]: what reaches the down projection."""
    epsilon = model.config["rms_norm_eps"]
    normal = normed(hidden, model.layer(index, "post_attention_layernorm"), epsilon)
    gate = normal @ model.layer(index, "mlp.gate_proj").T
    return torch.nn.functional.silu(gate) * (normal @ model.layer(index, "mlp.up_proj").T)


def rows_that_stayed(dense: Tensor, pruned: Tensor) -> Tensor:
    """Numbers of the rows of `dense` that `pruned` holds, in order."""
    at = {row.tobytes(): number for number, row in enumerate(dense.numpy())}
    return torch.tensor([at[row.tobytes()] for row in pruned.numpy()])


def apart(inputs: Tensor, kept: Tensor, dense: Tensor, found: Tensor, damping: float) -> float:
    """How far outputs by `found` [out, kept] are from those by least squares, of their size."""
    seen, weight = inputs.flatten(0, 1).double().numpy(), dense.double().numpy().T
    energy = np.sort((seen**2).sum(axis=0))
    alive = energy[energy > 0]
    ridge = damping * float(np.minimum(energy, 10 * alive[(len(alive) - 1) // 2]).mean())
    some = seen[:, kept.numpy()]
    gram, target = some.T @ some, some.T @ (seen @ weight) + ridge * weight[kept.numpy()]
    gram[np.diag_indices_from(gram)] += ridge
    fitted = np.linalg.solve(gram, target)
    expected = some @ fitted
    return float(
        np.linalg.norm(some @ found.double().numpy().T - expected) / np.linalg.norm(expected)
    )


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="the dense model")
    parser.add_argument("--build", type=Path, required=True)
    parser.add_argument("--layers", type=int, nargs="+", help="first, middle and last if none")
    parser.add_argument("--damping", type=float, default=0.01, help="as of the recipe")
    arguments = parser.parse_args()
    dense, pruned = Folder(arguments.model), Folder(arguments.build / "hf")
    depth = dense.config["num_hidden_layers"]
    wanted = arguments.layers or [0, depth // 2, depth - 1]
    plan = json.loads((arguments.build / "hf/prunec/plan.json").read_text())
    tokens = next(s for s in plan["steps"] if s["name"] == "calibration-tokens")["fingerprint"]
    path = next((arguments.build / ".store" / tokens).glob("ids.*.safetensors"))
    with safe_open(path, framework="pt") as file:
        ids = file.get_tensor("ids").long()
    hidden = pruned.get("model.embed_tokens.weight")[ids]
    size = dense.config["head_dim"]
    for index in range(max(wanted) + 1):
        if index in wanted:
            inputs = before_output(dense, index, hidden)
            heads = rows_that_stayed(
                dense.layer(index, "self_attn.q_proj"), pruned.layer(index, "self_attn.q_proj")
            )
            names = ("self_attn.o_proj", "mlp.down_proj")
            wholes, founds = ([m.layer(index, n) for n in names] for m in (dense, pruned))
            error = apart(inputs, heads, wholes[0], founds[0], arguments.damping)
            print(f"layer {index}: {len(heads) // size} heads, output projection {error:.4f} apart")
        seen = before_output(pruned, index, hidden)
        hidden = hidden + seen @ pruned.layer(index, "self_attn.o_proj").T
        if index in wanted:
            inputs = before_down(dense, index, hidden)
            neurons = rows_that_stayed(
                dense.layer(index, "mlp.up_proj"), pruned.layer(index, "mlp.up_proj")
            )
            error = apart(inputs, neurons, wholes[1], founds[1], arguments.damping)
            print(f"layer {index}: {len(neurons):,} neurons, down projection {error:.4f} apart")
        seen = before_down(pruned, index, hidden)
        hidden = hidden + seen @ pruned.layer(index, "mlp.down_proj").T
    return 0


if __name__ == "__main__":
    sys.exit(main())
