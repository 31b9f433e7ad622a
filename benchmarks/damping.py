# SPDX-License-Identifier: Apache-2.0
"""What should the ridge be a share of: the Gram diagonal's mean, bounded, its median, its own?

    python benchmarks/damping.py --model MODEL --calibration c4.jsonl --held-out wikitext2.test.raw

Of each MLP of the dense model alone a share of its neurons goes and the rest is refitted on
calibration text. Prints as Markdown the squared error of outputs on held-out text, relative to the
outputs, of all tokens together and of the mean token (where tokens of massive activations are few
among many), as means over layers and seeds. Documents are joined by the end-of-text token and cut
into windows, which each seed draws anew; of a text that is also calibrated on, the second half is
held out.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer

from prunec.compiler.model.checkpoint import Checkpoint
from prunec.compiler.model.decoder import Decoder
from prunec.compiler.model.folder import facts_from_folder
from prunec.compiler.model.layout import dense_layout
from prunec.compiler.passes.eliminate import channel_order
from prunec.compiler.passes.least_squares import NestedSolution, NormalEquations, ridge_of

Base = Callable[[Tensor], Tensor]  # diagonal [d_in] → what a ridge is a share of, [] or [d_in]

BASES: Mapping[str, Base] = {
    "mean": Tensor.mean,
    "bounded": lambda diagonal: ridge_of(diagonal, 1.0),
    "median": Tensor.median,
    "channel": lambda diagonal: diagonal.clamp(min=1e-12 * float(diagonal.mean())),
}


def windows_of(model: Path, text: Path, length: int, half: int | None) -> Tensor:
    """[windows, length]: a text's, or those of the first or the second half of its documents."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    lines = text.read_text("utf-8")
    documents = [lines]
    if text.suffix == ".jsonl":
        documents = [json.loads(line)["text"] for line in lines.splitlines()]
        if half is not None:
            middle = len(documents) // 2
            documents = documents[middle:] if half else documents[:middle]
    ids: list[int] = []
    for document in documents:
        ids += [*tokenizer(document, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    count = len(ids) // length
    return torch.tensor(ids[: count * length]).reshape(count, length)


def drawn(windows: Tensor, tokens: int, seed: int) -> Tensor:
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))
    return windows[order[: math.ceil(tokens / windows.shape[1])]]


@torch.no_grad()
def grams(decoder: Decoder, ids: Tensor, every: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of every so manieth layer's down projection: XᵀX; XᵀX of inputs that are over their output's
    norm, so that every token counts alike; W [d_in, d_out]."""
    hidden, found = decoder.embedded(ids), []
    for index, spec in enumerate(dense_layout(decoder.facts)):
        tensors = decoder.layer_tensors(index)
        layer = decoder.layer(index, spec, tensors)
        down = layer.get_submodule(decoder.facts.family.down)
        weight = tensors[f"{decoder.facts.family.down}.weight"].T.float()
        wanted = index % every == 0
        seen: list[Tensor] = []
        hook = down.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        whole = torch.zeros(spec.ffn, spec.ffn, dtype=torch.float64)
        alike = torch.zeros_like(whole)
        for batch in decoder.batches(*ids.shape):
            hidden[batch] = decoder.feed(layer, decoder.attend(layer, hidden[batch]))
            x = seen.pop().flatten(0, 1).float()
            if wanted:
                whole += x.T @ x
                x = x / (x @ weight).norm(dim=1, keepdim=True)
                alike += x.T @ x
        hook.remove()
        if wanted:
            found.append((whole, alike, weight.double()))
    return found


def layer_errors(
    gram: Tensor, ridge: Tensor, weight: Tensor, tests: Sequence[Tensor], keep: int
) -> list[float]:
    """Relative squared errors under held-out Gram matrices, of the map on `keep` of its inputs."""
    damped = gram + torch.diag(ridge.expand(len(gram)))
    problem = NormalEquations.of(damped, damped @ weight, weight)
    order = channel_order(problem, fewest=keep)
    inputs, fitted = NestedSolution.solve(problem, order[:keep]).weight(keep)
    change = weight.clone()
    change[inputs] -= fitted
    return [
        float(((test @ change) * change).sum() / ((test @ weight) * weight).sum()) for test in tests
    ]


def row(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def table(*names: str) -> None:
    row(*names)
    row(*("---" for _ in names))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, nargs="+", required=True)
    parser.add_argument("--tokens", type=int, default=16384, help="to calibrate on")
    parser.add_argument("--test-tokens", type=int, default=8192, help="of every held-out text")
    parser.add_argument("--length", type=int, default=512, help="of a window")
    parser.add_argument("--sparsity", type=float, default=0.25)
    parser.add_argument("--bases", nargs="+", default=[*BASES], choices=BASES)
    parser.add_argument("--damping", type=float, nargs="+", default=[0.01])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--every", type=int, default=1, help="measure each so manieth layer")
    arguments = parser.parse_args()
    facts = facts_from_folder(arguments.model)
    decoder = Decoder(Checkpoint(arguments.model, facts), torch.bfloat16, torch.device("cpu"))

    def text(path: Path, half: int) -> Tensor:
        both = path in arguments.held_out and path == arguments.calibration
        return windows_of(arguments.model, path, arguments.length, half if both else None)

    pool = text(arguments.calibration, 0)
    tests = {
        path.name: drawn(text(path, 1), arguments.test_tokens, 0) for path in arguments.held_out
    }
    held_out = [grams(decoder, ids, arguments.every) for ids in tests.values()]
    keep = round((1 - arguments.sparsity) * facts.ffn)
    errors: dict[tuple[str, float], list[list[float]]] = {}
    for seed in arguments.seeds:
        fitted = grams(decoder, drawn(pool, arguments.tokens, seed), arguments.every)
        for index, (gram, _, weight) in enumerate(fitted):
            under = [matrix for text in held_out for matrix in text[index][:2]]
            for damping in arguments.damping:
                for name in arguments.bases:
                    ridge = damping * BASES[name](gram.diagonal())
                    found = layer_errors(gram, ridge, weight, under, keep)
                    errors.setdefault((name, damping), []).append(found)
    diagonals = [gram.diagonal() for gram, _, _ in fitted]
    spikes = [float(diagonal.max() / diagonal.median()) for diagonal in diagonals]
    print(f"\nGram diagonal, largest over median: {min(spikes):.0f} to {max(spikes):.0f}\n")
    kinds = [f"{name}, {kind}" for name in tests for kind in ("all tokens", "mean token")]
    table("base", "damping", *kinds)
    for (name, damping), values in errors.items():
        row(name, damping, *(f"{statistics.mean(one):.4f}" for one in zip(*values, strict=True)))


if __name__ == "__main__":
    main()
