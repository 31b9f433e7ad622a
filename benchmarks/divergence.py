# SPDX-License-Identifier: Apache-2.0
"""How far is what a build has written from the dense model, on the evaluation text?

    python benchmarks/divergence.py examples/pytiny build/quickstart

Prints the mean of KL(dense ‖ pruned) in nats per position, over the whole vocabulary and all
windows that the build's perplexity was measured on. The build must still have its store.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from prunec.compiler.store import Store
from prunec.exporters import EXPORTERS
from prunec.validators.loading import open_model
from prunec.validators.manifest import MANIFEST

BATCH_TOKENS = 8192


def evaluation_windows(build: Path) -> Tensor:
    """[windows, length] token ids."""
    manifest = json.loads((build / MANIFEST).read_text("utf-8"))
    fingerprint = manifest["steps"]["evaluation-tokens"]
    tensors, _ = Store(build / ".store").entry(fingerprint).require_tensors("ids")
    return tensors["ids"].long()


@torch.inference_mode()
def divergence(dense: Path, pruned: Path, windows: Tensor) -> float:
    """Both models run in bfloat16, in which they are written; distributions are float32."""
    EXPORTERS["hf"].load()  # lets transformers know our classes: no remote code is run
    models = [open_model(folder, torch.bfloat16).model for folder in (dense, pruned)]
    sums: list[float] = []
    for ids in windows.split(max(1, BATCH_TOKENS // windows.shape[1])):
        ours, theirs = (
            model(input_ids=ids, use_cache=False).logits.float().log_softmax(dim=-1)
            for model in reversed(models)
        )
        at = kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=-1)
        sums.append(at.double().sum().item())
    return math.fsum(sums) / windows.numel()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path, help="the folder of the dense model")
    parser.add_argument("build", type=Path, help="the output folder of a build")
    arguments = parser.parse_args()
    windows = evaluation_windows(arguments.build)
    print(divergence(arguments.model, arguments.build / "hf", windows))


if __name__ == "__main__":
    main()
