# SPDX-License-Identifier: Apache-2.0
"""A build of a model that is larger than memory, under a limit of the kernel's."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunec.compiler.estimates import PROCESS_BYTES

Run = Callable[..., "subprocess.CompletedProcess[str]"]

#: Put before a command: once all is imported, memory is limited to less than the model's weights
#: take, which is tried first.
LIMIT = """
import resource
from pathlib import Path
import torch
from prunec.compiler import build_command, progress, store
from prunec.exporters import hf, vllm
from prunec.validators import tables
torch.set_num_threads(1)
status = Path("/proc/self/status").read_text().splitlines()
taken = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (taken + {limit}, taken + {limit}))
try:
    torch.ones({weights}, dtype=torch.uint8)
except RuntimeError:
    pass
else:
    raise SystemExit("there is no limit here")
"""


@pytest.fixture(scope="module")
def deep(tiny_llama: Callable[..., Path]) -> Path:
    """20 layers of 21 MB: narrow sublayers on a wide stream, so that they are solved quickly."""
    sizes: dict[str, Any] = {"hidden": 2048, "ffn": 512, "head_dim": 64, "layers": 20}
    return tiny_llama(**sizes, query_heads=4, kv_heads=2, shard_bytes=24_000_000)


@pytest.mark.parametrize("kind", ["uniform", pytest.param("tyr", marks=pytest.mark.slow)])
def test_a_model_larger_than_the_memory_is_pruned_and_written(
    recipe: Path, deep: Path, prunec_process: Run, kind: str, tmp_path: Path
) -> None:
    weights = sum(path.stat().st_size for path in deep.glob("*.safetensors"))
    content = json.loads(recipe.read_text(encoding="utf-8"))
    content["model"] |= {"source": str(deep), "dtype": "float32"}
    content["method"] = {"kind": kind}
    content["search"]["budget"] = {"token_forwards": 1536}
    if kind == "uniform":
        del content["search"]
    content["resources"] = {"memory": "780MiB"}
    del content["validate"]  # transformers maps a whole model, which this limit counts
    path = recipe.with_name(f"deep-{kind}.yaml")
    path.write_text(json.dumps(content), encoding="utf-8")
    limited = LIMIT.format(limit=7 * weights // 10, weights=weights)
    done = prunec_process("build", path, "--output", tmp_path, prelude=limited)
    assert done.returncode == 0, done.stderr


def test_memory_that_runs_out_is_told_with_what_would_have_helped(
    recipe: Path, deep: Path, prunec_process: Run, tmp_path: Path
) -> None:
    weights = sum(path.stat().st_size for path in deep.glob("*.safetensors"))
    bounds = LIMIT.format(limit=weights // 10, weights=weights)
    source = ["--set", f"model.source={deep}"]
    done = prunec_process("build", recipe, *source, "--output", tmp_path, prelude=bounds)
    assert done.returncode == 3
    assert "out of memory" in done.stderr and "resources.memory" in done.stderr


def test_a_model_larger_than_the_memory_is_measured_part_by_part(
    recipe: Path, deep: Path, prunec_process: Run, tmp_path: Path
) -> None:
    weights = sum(path.stat().st_size for path in deep.glob("*.safetensors"))
    content = json.loads(recipe.read_text(encoding="utf-8"))
    content["model"] |= {"source": str(deep), "dtype": "float32"}
    content["method"] = {"kind": "magnitude"}
    del content["calibration"], content["search"], content["validate"]["completion"]
    path = recipe.with_name("measured.yaml")
    path.write_text(json.dumps(content), encoding="utf-8")
    settings = ["--set", "resources.memory=1200MiB", "--output", tmp_path]
    assert prunec_process("build", path, *settings).returncode == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    # Whole, all of the weights would come on top of what Python and PyTorch take.
    assert report["cost"]["peak_rss_bytes"] < PROCESS_BYTES + 3 * weights // 4
