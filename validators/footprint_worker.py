# SPDX-License-Identifier: Apache-2.0
"""Run by `footprint.py` in a process of its own: load a folder, say what memory that took."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from prunec.validators import child
from prunec.validators.errors import ValidationError

_TOKENS = 8
#: address, permissions, offset, device, inode, and the mapped file where there is one
_MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+ *(.*)")


def respond(request: dict[str, Any]) -> dict[str, int]:
    """The bytes that a loaded folder adds to this process."""
    folder = Path(request["folder"])
    load = _load_hf if request["kind"] == "hf" else _load_onnx
    files = {str(path.resolve()) for path in folder.rglob("*") if path.is_file()}
    answer = load(folder, request["trust_remote_code"], request["dtype"])
    before = _resident(files)
    loaded = answer()  # held: what nobody holds is freed
    after = _resident(files)
    del loaded
    return {"bytes": after - before}


def _load_hf(folder: Path, trust_remote_code: bool, wanted: str | None) -> Callable[[], Any]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from prunec.validators.loading import open_model

    # Code is imported and kernels are warmed up before anything is weighed.
    if not (folder / "config.json").is_file():
        raise ValidationError(f"{folder} is not a model folder: it has no config.json")
    trust: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    config = AutoConfig.from_pretrained(str(folder), **trust)
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    dtype = getattr(torch, wanted) if wanted else dtype
    with torch.device("meta"):
        AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    torch.nn.functional.linear(
        torch.ones(_TOKENS, 64, dtype=dtype), torch.ones(64, 64, dtype=dtype)
    )

    @torch.inference_mode()
    def answer() -> Any:
        model = open_model(folder, dtype, trust_remote_code=trust_remote_code)
        output = model.model(input_ids=torch.arange(_TOKENS)[None], use_cache=True)
        return model, output

    return answer


def _load_onnx(folder: Path, trust_remote_code: bool, wanted: str | None) -> Callable[[], Any]:
    from prunec.validators.parity_onnx import Session, require_onnxruntime

    require_onnxruntime()

    def answer() -> Any:
        session = Session(folder)
        return session, session.read(np.arange(_TOKENS)[None])

    return answer


def _resident(files: set[str]) -> int:
    """Resident bytes of this process: its own, and those of `files`, not of libraries.

    What was freed goes back to the system first, where its allocator can.
    """
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    total, counted = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if mapping := _MAPPING.fullmatch(line):
            name = mapping[1]
            counted = not name.startswith("/") or name in files
        elif counted and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
    return total


if __name__ == "__main__":
    child.answer(respond)
