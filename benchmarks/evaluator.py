# SPDX-License-Identifier: Apache-2.0
"""What scoring a candidate costs beside a dense forward pass over the same tokens.

    python benchmarks/evaluator.py --model examples/pytiny

Solves a supernet around the uniform layout, then times in turns: the dense model on all search
windows, a candidate on all of them, single-sublayer probes that start from kept hidden states,
and whole races, whose cost is shared by their candidates. Text is the standard library's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from builds import ROOT
from transformers import AutoTokenizer

from prunec.compiler.calibration import sources
from prunec.compiler.calibration.windows import draw_windows
from prunec.compiler.model.checkpoint import Checkpoint
from prunec.compiler.model.decoder import Decoder
from prunec.compiler.model.folder import facts_from_folder
from prunec.compiler.model.layout import dense_layout
from prunec.compiler.model.modeling.modeling_prunec import PerLayerDecoderLayer
from prunec.compiler.passes.nested import CutLayer, NestedLayer
from prunec.compiler.passes.sequential import Solver, prune_sequentially
from prunec.compiler.search.budget import Budget, Candidate
from prunec.compiler.search.divergence import TeacherDistributions
from prunec.compiler.search.evaluator import Evaluator
from prunec.compiler.search.evolutionary import mutants
from prunec.compiler.search.race import race, stages_of
from prunec.compiler.search.searcher import State
from prunec.compiler.search.space import Space

LENGTH, STEP_SHARE, TOP_K = 256, 0.125, 512


class Supernet:
    """The memory of a walk that keeps every size of every layer."""

    with_nested = True

    def __init__(self) -> None:
        self.layers: list[NestedLayer] = []

    def load(self, index: int) -> CutLayer | None:
        return None

    def save(self, index: int, nested: NestedLayer, cut: CutLayer) -> None:
        self.layers.append(nested)


def windows_of(folder: Path, split: str, windows: int) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    return draw_windows(
        sources.documents({"kind": "python_stdlib", "split": split}, 0, ROOT),
        lambda document: [
            *tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"],
            tokenizer.eos_token_id,
        ],
        windows=windows,
        length=LENGTH,
        seed=0,
        total=windows,
    )


def seconds(run: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


@torch.no_grad()
def dense_pass(
    decoder: Decoder, layers: list[PerLayerDecoderLayer], ids: torch.Tensor
) -> Iterator[torch.Tensor]:
    """Logits of the dense model, batch by batch."""
    for batch in decoder.batches(*ids.shape):
        hidden = decoder.embed(ids[batch])
        for layer in layers:
            hidden = decoder.feed(layer, decoder.attend(layer, hidden))
        yield decoder.logits(hidden)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, default=ROOT / "examples" / "pytiny")
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--calibration-windows", type=int, default=128)
    parser.add_argument("--search-windows", type=int, default=64)
    parser.add_argument("--candidates", type=int, default=16, help="of one race")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts = facts_from_folder(arguments.model)
    decoder = Decoder(Checkpoint(arguments.model, facts), torch.bfloat16, device)
    budget = Budget(facts, arguments.sparsity, 16, False, lambda queries, kv: True)
    centre = budget.uniform_layout()
    supernet = Supernet()
    calibration = windows_of(arguments.model, "calibration", arguments.calibration_windows)
    with torch.no_grad():
        prune_sequentially(decoder, calibration, centre, Solver(0.01, 0.0), supernet)
    ids = windows_of(arguments.model, "search", arguments.search_windows)
    dense = dense_layout(facts)[0]
    layers = [decoder.layer(i, dense, decoder.layer_tensors(i)) for i in range(facts.layers)]
    parts = [
        TeacherDistributions.from_logits(logits, TOP_K)
        for logits in dense_pass(decoder, layers, ids)
    ]
    teacher = TeacherDistributions(
        torch.cat([part.ids for part in parts]),
        torch.cat([part.log_probs for part in parts]),
        torch.cat([part.log_tail for part in parts]),
    )
    evaluator = Evaluator(decoder, supernet.layers, ids, teacher)
    start = Candidate.of(centre)
    space = Space(budget, tuple(tuple(nested.attention.shapes) for nested in supernet.layers))
    step = max(16, round(STEP_SHARE * facts.ffn / 16) * 16)
    scores = evaluator.rebase(centre).tolist()
    state = State(start, scores, scores, 0)
    everything = range(len(ids))
    probes = [
        budget.layout(probe)
        for group in space.groups
        for probe in (space.moved_attention(start, group, -1), space.moved_mlp(start, group, -step))
    ]
    rng = np.random.default_rng(0)
    times: dict[str, list[float]] = {}
    for repeat in range(arguments.repeats + 1):
        pool = mutants(space, state, step, arguments.candidates, rng)
        layouts = [budget.layout(candidate) for candidate in pool]
        for layout in layouts:  # cutting levels is paid once a search, not once a candidate
            evaluator.divergences(layout, range(1))
        alone = Evaluator(decoder, supernet.layers, ids, teacher)
        alone.divergences(layouts[0], range(1))
        stages = stages_of(len(pool), len(ids))
        measured = {
            "dense forward": seconds(lambda: [*dense_pass(decoder, layers, ids)]),
            "candidate, from the start": seconds(
                partial(alone.divergences, layouts[0], everything)
            ),
            "probe, from kept states": seconds(
                lambda: [evaluator.divergences(layout, everything) for layout in probes]
            )
            / len(probes),
            f"candidate in a race of {len(pool)}": seconds(
                partial(race, budget, evaluator, pool, stages, everything)
            )
            / len(pool),
        }
        for name, value in measured.items():
            if repeat:  # the first round warms up
                times.setdefault(name, []).append(value)
    print(
        f"{arguments.model.name}, {arguments.sparsity:.1%} removed, {ids.numel():,} tokens, "
        f"{device.type}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print("| | seconds | of a dense forward |\n|---|---|---|")
    for name, values in times.items():
        ratios = [v / d for v, d in zip(values, times["dense forward"], strict=True)]
        print(
            f"| {name} | {statistics.median(values):.3f} | {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f}–{max(ratios):.2f}) |"
        )


if __name__ == "__main__":
    main()
