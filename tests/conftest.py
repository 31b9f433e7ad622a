# SPDX-License-Identifier: Apache-2.0
"""Tiny random models that the tests share."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants

from tests.published_configs import PUBLISHED

# The same random numbers in every run; another seed, or `random`, draws others (CONTRIBUTING.md).
os.environ.setdefault("PRUNEC_TEST_SEED", "0")
if os.environ["PRUNEC_TEST_SEED"] == "random":  # one number for all processes of this run
    os.environ["PRUNEC_TEST_SEED"] = str(int.from_bytes(os.urandom(4), "big"))

# Files of tests run side by side, see the Makefile: each on a core of its own.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Machines that run tests are busy: how long an example takes says nothing.
# And a test that passes has to pass again: what is drawn follows from the test alone.
settings.register_profile("tests", deadline=None, derandomize=True, database=None)
# More of it, and anew: `--hypothesis-profile=fresh`.
settings.register_profile("fresh", deadline=None, max_examples=1000)
settings.load_profile("tests")
# Hypothesis also tries constants that it finds in the modules that happen to be loaded by then.
vars(providers)["_get_local_constants"] = Constants


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What a test draws without a generator of its own does not hang on the tests before it."""
    seed = int(os.environ["PRUNEC_TEST_SEED"])
    random.seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)


#: What is special about a family: windows shorter than the text, scalings, normed scores.
SPECIAL: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    "mistral": {"sliding_window": 7},
    "qwen2": {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2},
    "qwen3": {"head_dim": 24},
    "phi3": {
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5],
            "long_factor": [2.0] * 8,
        },
        "original_max_position_embeddings": 64,
    },
    "gemma2": {"sliding_window": 7, "query_pre_attn_scalar": 16, "tied": True},
    "gemma3_text": {"sliding_window": 7, "sliding_window_pattern": 2, "tied": True},
}


def make_model(
    folder: Path,
    model_type: str = "llama",
    *,
    layers: int = 3,
    hidden: int = 64,
    query_heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    ffn: int = 96,
    vocab: int = 300,
    tied: bool = False,
    biased: bool = False,
    dtype: str = "float32",
    shard_bytes: int | None = None,
    seed: int = 0,
    **config: Any,
) -> Path:
    """Write a random model of a family and a byte-level tokenizer, as transformers saves them.

    `biased` puts biases on attention and MLP where the family knows of any, `shard_bytes` cuts the
    weights into shards of at most that size, `config` adds to the config. Norms and biases are
    random too, so that a test can tell whether they were used.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            model_type,
            **{
                "vocab_size": vocab,
                "hidden_size": hidden,
                "intermediate_size": ffn,
                "num_hidden_layers": layers,
                "num_attention_heads": query_heads,
                "num_key_value_heads": kv_heads,
                "head_dim": head_dim,
                "tie_word_embeddings": tied,
                "attention_bias": biased,
                "mlp_bias": biased,
                "max_position_embeddings": 512,
                "pad_token_id": 0,
                "bos_token_id": 1,
                "eos_token_id": 2,
                **config,
            },
        )
    )
    _randomise(model, seed)
    model = model.to(getattr(torch, dtype))
    model.save_pretrained(folder, max_shard_size=shard_bytes or "1GB")
    _save_tokenizer(folder)
    return folder


def make_published(folder: Path, config: dict[str, Any], seed: int = 0) -> Path:
    """`make_model` of a config.json as its publisher wrote it, which lies there unchanged."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    written = json.dumps(config, indent=2)
    (folder / "config.json").write_text(written)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    _randomise(model, seed)
    model.float().save_pretrained(folder)
    (folder / "config.json").write_text(written)
    _save_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_model` without its folder. Equal options give the same folder: do not write to it."""
    made: dict[str, tuple[Path, dict[str, int]]] = {}

    def written(folder: Path) -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}

    def make(**options: Any) -> Path:
        key = repr(sorted(options.items()))
        if key not in made:
            folder = make_model(tmp_path_factory.mktemp("model"), **options)
            made[key] = folder, written(folder)
        folder, then = made[key]
        assert written(folder) == then, "an earlier test has written to the model that all share"
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_family(tiny_llama: Callable[..., Path]) -> Callable[..., Path]:
    """`tiny_llama` for any family, with what is special about it."""

    def make(model_type: str, **options: Any) -> Path:
        return tiny_llama(model_type=model_type, **SPECIAL.get(model_type, {}), **options)

    return make


@pytest.fixture(scope="session")
def published_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A model with the config.json of a row of `PUBLISHED`: do not write to its folder."""
    made: dict[tuple[str, int], Path] = {}

    def make(name: str, layers: int = 5) -> Path:
        if (name, layers) not in made:
            config = PUBLISHED[name] | {"num_hidden_layers": layers}
            if "layer_types" in config:
                config["layer_types"] = config["layer_types"][:layers]
            made[name, layers] = make_published(tmp_path_factory.mktemp("published"), config)
        return made[name, layers]

    return make


@pytest.fixture
def peak_growth() -> Callable[[str], int]:
    """Bytes by which a Python program's peak resident set grows behind its call of `start()`."""

    def grown(program: str) -> int:
        if not Path("/proc/self/status").exists():
            pytest.skip("this system does not tell what a process has had in memory at most")
        code = f"{_PEAK}{textwrap.dedent(program)}\nprint(peak() - before)\n"
        run = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr
        return int(run.stdout.split()[-1])

    return grown


def _randomise(model: Any, seed: int) -> None:
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("norm.weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.1 * noise)
            else:
                parameter.copy_(noise * parameter.shape[1] ** -0.5)


_PEAK = """
import pathlib

def peak():
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])

def start():
    global before
    before = peak()
"""


def _save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["def self return import class None for in range if else"] * 4, trainer
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
