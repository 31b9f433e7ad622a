# SPDX-License-Identifier: Apache-2.0
"""What vLLM calls when it starts, in each of its processes: the entry point in pyproject.toml."""

from __future__ import annotations

from prunec.exporters.vllm_rules import PLUGIN_ARCHITECTURES


def register() -> None:
    """Let vLLM know the architectures of per-layer models; may be called any number of times.

    The classes are named, not imported: importing them initialises vLLM's platform.
    """
    from vllm import ModelRegistry

    import prunec.exporters.hf  # noqa: F401 - lets transformers know our configs: no remote code

    for architecture in PLUGIN_ARCHITECTURES.values():
        ModelRegistry.register_model(architecture, f"prunec.exporters.vllm_models:{architecture}")
