# SPDX-License-Identifier: Apache-2.0
"""Train one of the example models, small Llamas of Python code, on the standard library at hand.

    python examples/train.py pytiny --minutes 100

Nothing is downloaded. The text is the standard library of the interpreter that runs this file,
its own tests included where they are installed; the modules that prunec searches and evaluates
on, and their tests, are held out (`prunec.compiler.calibration.python_stdlib`). The schedule
follows the wall clock, so a slower machine sees fewer tokens and still ends its cosine. Killed,
it goes on from the last checkpoint in `--work`; finished, it writes the model to its folder.
"""

from __future__ import annotations

import argparse
import math
import platform
import sysconfig
import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prunec.compiler.calibration import python_stdlib

HERE = Path(__file__).resolve().parent
END = "<|endoftext|>"
CONTEXT = 512
BATCH = 16  # sequences a step
LIBRARY_REPEATS = 2  # library modules are seen twice for every pass over the tests


PROMPT = "def parse(self, line):\n"

#: Two models of other shapes, so that no finding rests on one alone.
SHAPES: dict[str, dict[str, Any]] = {
    "pytiny": {
        "hidden_size": 256,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "intermediate_size": 704,
        "tie_word_embeddings": True,
    },
    "pydeep": {
        "hidden_size": 128,
        "num_hidden_layers": 16,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "intermediate_size": 352,
        "tie_word_embeddings": False,
    },
}
PURPOSES = {
    "pytiny": "It is the model of prunec's quickstart and of its tests; it is not meant to be\n"
    "useful for writing code.",
    "pydeep": "It is there so that benchmarks do not rest on pytiny alone: deeper, without\n"
    "grouped queries, its embeddings untied.",
}

CARD = """---
library_name: transformers
pipeline_tag: text-generation
license: psf-2.0
tags: [python, tiny, llama]
---

# {name}

A Llama of {parameters:,} parameters that writes Python, small enough to be pruned in minutes on a
laptop. {purpose}

| | |
| --- | --- |
| architecture | {architecture} |
| tokenizer | byte-level BPE, 4,096 tokens, trained on the same text |
| weights | bfloat16 safetensors |
| text | the standard library of Python {python} and its own tests; nothing was downloaded |
| tokens seen | {tokens_seen:,} ({passes:.1f} passes), windows of 512 |
| training | {minutes:.0f} minutes on two CPU cores, seed {seed}, torch {torch} |
| held-out perplexity | **{perplexity:.2f}** per token ({held_out_tokens:,} evaluation tokens) |

Reproduce it, up to the speed of the machine, with `python examples/train.py {name} --minutes
{minutes:.0f} --seed {seed}`. The schedule follows the wall clock: a machine that does other work
meanwhile sees fewer tokens.

## What was held out

Neither these modules nor their tests were trained on:

* evaluation, on which results are reported: {evaluation};
* search, on which layouts are compared: {search}.

Calibration text is drawn from the rest of the library, which the model has seen: as in practice,
where calibration text resembles the training text.

## What it writes

Greedy, from the first line:

```python
{completion}
```

The text is Python's own, under the PSF licence; the weights are derived from it.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=SHAPES)
    parser.add_argument("--minutes", type=float, default=90.0, help="wall-clock time of training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="checkpoints and tokenizer (its checkpoints/)")
    parser.add_argument("--output", type=Path, help="where the finished model goes (its folder)")
    args = parser.parse_args()
    args.output = args.output or HERE / args.name
    args.work = args.work or HERE / args.name / "checkpoints"
    args.output.mkdir(parents=True, exist_ok=True)
    args.work.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(args.seed)
    library, tests = training_texts()
    tokenizer = train_tokenizer(library + tests, args.work / "tokenizer.json")
    stream = tokenize(tokenizer, library * LIBRARY_REPEATS + tests, args.seed)
    held_out = tokenize(tokenizer, held_out_texts("evaluation"), seed=None)
    print(f"{len(stream):,} training tokens a pass, {len(held_out):,} held out", flush=True)

    model = LlamaForCausalLM(architecture(args.name))
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters", flush=True)
    tokens_seen = train(model, stream, held_out, args)
    model = model.to(torch.bfloat16)  # what is published is what is measured
    loss = held_out_loss(model, held_out)
    save(model, tokenizer, args.output)
    print(f"held-out perplexity {math.exp(loss):.2f} after {tokens_seen:,} tokens", flush=True)
    card = CARD.format(
        name=args.name,
        purpose=PURPOSES[args.name],
        architecture=described(model.config),
        parameters=parameters,
        perplexity=math.exp(loss),
        held_out_tokens=len(held_out),
        tokens_seen=tokens_seen,
        passes=tokens_seen / len(stream),
        minutes=args.minutes,
        seed=args.seed,
        python=platform.python_version(),
        torch=torch.__version__,
        evaluation=", ".join(sorted(python_stdlib.EVALUATION)),
        search=", ".join(sorted(python_stdlib.SEARCH)),
        completion=complete(model, tokenizer, PROMPT),
    )
    (args.output / "README.md").write_text(card, encoding="utf-8")


def architecture(name: str) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=4096,
        max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=0,
        **SHAPES[name],
    )


def described(config: LlamaConfig) -> str:
    return (
        f"Llama: {config.num_hidden_layers} layers, hidden {config.hidden_size}, "
        f"{config.num_attention_heads} query and {config.num_key_value_heads} KV heads of "
        f"{config.head_dim}, FFN {config.intermediate_size}, "
        f"{'tied' if config.tie_word_embeddings else 'untied'}"
    )


def training_texts() -> tuple[list[str], list[str]]:
    """(library, tests): what may be trained on. The tests of held-out modules are held out too."""
    root = Path(sysconfig.get_paths()["stdlib"])
    held_out = python_stdlib.SEARCH | python_stdlib.EVALUATION

    def is_clean(path: Path) -> bool:
        names = [part.removesuffix(".py").removeprefix("test_") for part in path.parts]
        return not any(name == h or name.startswith(h + "_") for name in names for h in held_out)

    library = python_stdlib.files("calibration", root)
    folders = [root / "test", *sorted(root.glob("*/tests")), root / "idlelib" / "idle_test"]
    tests = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    tests = [path for path in tests if is_clean(path.relative_to(root))]
    return _read(library), [text for text in _read(tests) if not _is_table(text)]


def held_out_texts(split: str) -> list[str]:
    return _read(python_stdlib.files(split))


def _read(paths: list[Path]) -> list[str]:
    texts = [path.read_text(encoding="utf-8", errors="ignore") for path in paths]
    return [text for text in texts if text.strip()]


def _is_table(text: str) -> bool:
    """Data dressed as code (character maps, certificates): few letters, many digits."""
    digits = sum(character.isdigit() for character in text)
    return digits > 0.15 * len(text) or (
        not text.isascii() and len(text.encode()) > 1.2 * len(text)
    )


def train_tokenizer(texts: list[str], path: Path) -> Tokenizer:
    """Byte-level BPE of 4,096 tokens; runs of blanks become tokens, as code wants."""
    if path.exists():
        return Tokenizer.from_file(str(path))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(path))
    return tokenizer


def tokenize(tokenizer: Tokenizer, texts: list[str], seed: int | None) -> torch.Tensor:
    """One stream of ids, an end mark after every text; shuffled by text where a seed is given."""
    order = list(range(len(texts)))
    if seed is not None:
        order = torch.randperm(len(texts), generator=_generator(seed)).tolist()
    end = tokenizer.token_to_id(END)
    encoded = tokenizer.encode_batch([texts[i] for i in order])
    return torch.tensor([i for text in encoded for i in (*text.ids, end)], dtype=torch.int64)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch_at(stream: torch.Tensor, step: int, seed: int) -> torch.Tensor:
    """[BATCH, CONTEXT + 1]: batch number `step`, a function of the step alone, so that a
    resumed run sees what an uninterrupted one would. Each pass has its own offset and order."""
    windows = (len(stream) - CONTEXT) // CONTEXT - 1
    per_pass = windows // BATCH
    number, within = divmod(step, per_pass)
    generator = _generator(seed * 1_000_003 + number)
    offset = int(torch.randint(CONTEXT, (1,), generator=generator))
    order = torch.randperm(windows, generator=generator)
    starts = offset + CONTEXT * order[within * BATCH : (within + 1) * BATCH]
    return stream[starts[:, None] + torch.arange(CONTEXT + 1)]


def train(
    model: LlamaForCausalLM, stream: torch.Tensor, held_out: torch.Tensor, args: argparse.Namespace
) -> int:
    """Muon for the blocks' matrices, AdamW for embeddings and norms; returns the tokens seen."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(
            matrices, lr=4e-3, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=4e-3, betas=(0.9, 0.95), weight_decay=0.01),
    ]
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    checkpoint = args.work / "checkpoint.pt"
    step, spent = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step, spent = state["step"], state["spent"]
        print(f"resumed at step {step}", flush=True)

    compiled = torch.compile(model)
    budget = 60.0 * args.minutes
    last_save = last_report = spent
    began = time.monotonic() - spent
    while spent < budget:
        share = spent / budget
        scale = min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * scale
        ids = batch_at(stream, step, args.seed)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = compiled(input_ids=ids[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        spent = time.monotonic() - began
        if step % 20 == 0:
            speed = 20 * BATCH * CONTEXT / (spent - last_report)
            print(
                f"{spent / 60:6.1f} min  step {step}  loss {loss:.3f}  {speed:,.0f} tok/s",
                flush=True,
            )
            last_report = spent
        if step % 200 == 0:
            held = held_out_loss(model, held_out[: 64 * CONTEXT + 1])
            print(
                f"{'':10} held-out perplexity {math.exp(held):.2f} (first 32k tokens)", flush=True
            )
        if spent - last_save > 120 or spent >= budget:
            state = {
                "model": model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "step": step,
                "spent": spent,
            }
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
            last_save = spent
    return step * BATCH * CONTEXT


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, stream: torch.Tensor) -> float:
    """Mean next-token loss in nats over consecutive windows of the training context."""
    windows = (len(stream) - 1) // CONTEXT
    total = 0.0
    for start in range(0, windows, BATCH):
        rows = torch.arange(start, min(start + BATCH, windows)) * CONTEXT
        ids = stream[rows[:, None] + torch.arange(CONTEXT + 1)]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits.float()
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        total += losses.item() * len(rows)
    return total / windows


def complete(model: LlamaForCausalLM, tokenizer: Tokenizer, prompt: str, tokens: int = 96) -> str:
    ids = torch.tensor([tokenizer.encode(prompt).ids])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False
    )
    return tokenizer.decode(out[0].tolist())


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    model.generation_config.update(bos_token_id=0, eos_token_id=0, pad_token_id=0)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        model_max_length=CONTEXT,
    ).save_pretrained(folder)


if __name__ == "__main__":
    main()
