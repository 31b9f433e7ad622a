# SPDX-License-Identifier: Apache-2.0
"""The tensors that a checkpoint holds, against those that its config calls for.

Nothing is left out in silence: a tensor is read, is known to do nothing, or stops the plan.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.facts import Facts
from prunec.compiler.model.headers import value_blocks
from prunec.compiler.model.layout import dense_layout, tensor_shapes

_FLOATS = ("BF16", "F16", "F32", "F64")

#: What a language model does without. Rotary frequencies and masks are made from the config, and
#: older versions of transformers saved them; a value head is what PPO trains beside a policy.
_UNUSED = re.compile(
    r"(.+\.)?(rotary_emb\.(inv_freq|cos_cached|sin_cached)|masked_bias|position_ids)|v_head\..+"
)
_ADAPTER = re.compile(r"lora_|\.base_layer\.|modules_to_save|^base_model\.")
_QUANTISED = re.compile(r"(qweight|qzeros|g_idx|scales|_scale|scale_inv|weight_packed|absmax|SCB)$")


def check_tensors(facts: Facts, folder: Path) -> None:
    """ModelError where a checkpoint lacks a tensor that its config calls for, holds it in another
    shape or form, or holds one that the pruned model would lose."""
    due = tensor_shapes(facts, dense_layout(facts))
    others = sorted(facts.tensors.keys() - due.keys() - {facts.family.head})
    unknown = [name for name in others if not _UNUSED.fullmatch(name)]
    for name, shape in due.items():
        info = facts.tensors.get(name)
        if info is None:
            raise ModelError(
                f"{folder} has no tensor {name}, though its config calls for it",
                hint=_advice(facts, unknown) or _of_another_class(name, others),
            )
        if info.dtype not in _FLOATS:
            raise ModelError(f"{folder}: {name} is {info.dtype}; prunec reads {', '.join(_FLOATS)}")
        if info.shape != shape:
            raise ModelError(f"{folder}: {name} has shape {info.shape}; its config says {shape}")
    if unknown:
        of = f"{facts.family.title} with this config.json"
        raise ModelError(
            f"{folder} holds {listed(unknown)}, which {of} does not have: they would be lost",
            hint=_advice(facts, unknown)
            or "if the model works without them, load it with transformers and save it again",
        )
    if facts.tied and facts.family.head in facts.tensors:
        _check_tied(facts, folder)


def unused_tensors(facts: Facts) -> list[str]:
    """The tensors of a sound checkpoint that no pruned model has."""
    return sorted(filter(_UNUSED.fullmatch, facts.tensors))


def listed(names: Sequence[str]) -> str:
    """The first names, and how many there are."""
    shown = [name if name.isprintable() else repr(name) for name in names[:3]]
    first = ", ".join(f"{name[:77]}…" if len(name) > 80 else name for name in shown)
    return first if len(names) <= 3 else f"{first} and {len(names) - 3:,} tensors more"


def _check_tied(facts: Facts, folder: Path) -> None:
    """A head that is stored beside the embedding it is tied to has to be the same."""
    names = (facts.family.embedding, facts.family.head)
    embedding, head = (facts.tensors[name] for name in names)
    same = (embedding.dtype, embedding.shape) == (head.dtype, head.shape) and all(
        one == other
        for one, other in zip(
            value_blocks(folder / embedding.shard, names[0]),
            value_blocks(folder / head.shard, names[1]),
            strict=True,
        )
    )
    if not same:
        raise ModelError(
            f"{folder} holds {names[1]} beside {names[0]} with other values, and its config.json "
            "ties the two (tie_word_embeddings)",
            hint="set tie_word_embeddings to false in config.json: transformers reads such files "
            "so. If the head is a left-over, remove it from the file",
        )


def _advice(facts: Facts, unknown: Sequence[str]) -> str | None:
    """What the names of strange tensors say about where they come from."""
    family = facts.family
    if any(map(_ADAPTER.search, unknown)):
        return "they are an adapter's: merge it into the weights first (peft: merge_and_unload)"
    if any(map(_QUANTISED.search, unknown)):
        return "the weights are quantised: start from the original checkpoint"
    keys = [
        key
        for key, projections in family.biases.items()
        if any(name.endswith(f"{each}.bias") for name in unknown for each in projections)
    ]
    if keys:
        said = " and ".join(f"{key}: true" for key in keys)
        return f"if the model was trained with these biases, config.json has to say {said}"
    prefix = re.escape(family.layer_prefix).replace(r"\{\}", r"(\d{1,9})")
    indices = [int(at[1]) for name in unknown if (at := re.match(prefix, name))]
    if max(indices, default=-1) >= facts.layers:
        return f"config.json says num_hidden_layers: {facts.layers}"
    return None


def _of_another_class(name: str, others: Iterable[str]) -> str | None:
    """A tensor may be there under the name that it has in a model around this one, or inside."""
    for other in others:
        if other.endswith(f".{name}") or name.endswith(f".{other}"):
            there = other[:80] if other.isprintable() else repr(other[:80])
            return f"the file calls it {there}: save the causal language model by itself"
    return None
