# SPDX-License-Identifier: Apache-2.0
"""Decoders whose layers each have their own shape: fewer heads, a narrower MLP, or neither.

What all families share; `modeling_prunec_<family>.py` makes transformers' own classes of one family
into such ones. Both files stand alone (torch and transformers only): they lie beside exported
weights, for `from_pretrained(..., trust_remote_code=True)`. Where prunec is installed, `import
prunec.exporters.hf` registers the classes, and no remote code is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import Cache, PretrainedConfig
from transformers.integrations.heterogeneity import HeterogeneousConfigMixin
from transformers.modeling_layers import GradientCheckpointingLayer

_ATTENTION, _MLP = "attention", "mlp"


class PerLayerConfig(PretrainedConfig):
    """A config with the sizes of every layer in transformers' own `per_layer_config`.

    An entry gives what differs from the model-wide sizes, which are upper bounds over the layers;
    `skip` names sublayers that are absent. Where the KV heads of a layer serve different numbers of
    query heads, its entry lists these as `query_groups`.
    """

    query_groups = None

    @property
    def per_layer_config(self) -> Any:
        return HeterogeneousConfigMixin.per_layer_config.fget(self)

    @per_layer_config.setter
    def per_layer_config(self, stated: Mapping[int | str, dict[str, Any]] | None) -> None:
        HeterogeneousConfigMixin.per_layer_config.fset(self, stated)
        # transformers lets nobody read a model-wide size that varies. Rotary embeddings (yarn,
        # dynamic, longrope) and serving tools do, and upper bounds are what they need.
        spec = getattr(self, "_heterogeneity_spec", None)
        if spec is not None:
            spec.per_layer_attributes.clear()

    def shape_of(self, layer: int) -> tuple[int, int, int]:
        """Query heads, KV heads and MLP width of one layer; zeros for what is absent."""
        sizes = self.per_layer_config[layer]
        skipped = getattr(sizes, "skip", ())
        heads = (sizes.num_attention_heads, sizes.num_key_value_heads)
        query_heads, kv_heads = (0, 0) if _ATTENTION in skipped else heads
        return query_heads, kv_heads, 0 if _MLP in skipped else sizes.intermediate_size

    def groups_of(self, layer: int) -> list[int] | None:
        """Query heads of each of a layer's KV heads; None where all have as many."""
        groups: list[int] | None = self.per_layer_config[layer].query_groups
        return groups

    def validate_architecture(self) -> None:
        """Called by `@strict`, in place of checks that the heads divide the hidden size: they need
        not, since head_dim is explicit. Shapes are checked once all of them are known."""

    def check_shapes(self) -> None:
        """ValueError unless every layer has a shape that can be built."""
        for layer in range(self.num_hidden_layers):
            skipped = set(getattr(self.per_layer_config[layer], "skip", ()))
            if not skipped <= {_ATTENTION, _MLP}:
                raise ValueError(
                    f"layer {layer} skips {sorted(skipped)}; it may skip attention, mlp"
                )
            counts = query_heads, kv_heads, ffn = self.shape_of(layer)
            if not all(type(count) is int and count >= 0 for count in counts):
                raise ValueError(f"layer {layer} has sizes {counts}; they must be whole numbers")
            if not (kv_heads or _ATTENTION in skipped) or not (ffn or _MLP in skipped):
                raise ValueError(
                    f"layer {layer} has sizes {counts}; what is absent is to be skipped"
                )
            groups = self.groups_of(layer)
            if groups is not None:
                if len(groups) != kv_heads or sum(groups) != query_heads or min(groups) < 1:
                    raise ValueError(
                        f"layer {layer} has query_groups {groups} for {query_heads} query heads "
                        f"on {kv_heads} KV heads"
                    )
            elif kv_heads and query_heads % kv_heads:
                raise ValueError(
                    f"layer {layer} has {query_heads} query heads on {kv_heads} KV heads"
                )

    def cache_slots(self) -> list[int]:
        """The slot in a KV cache of every layer; those without attention never use theirs.

        A cache has a slot for each layer, of the layer's type (full or sliding), and takes its
        length from the first slot, or the first of a type. So the layers of a type that have
        attention get the type's slots in order, and none of the first slots stays empty.
        """
        types = getattr(self, "layer_types", None) or [None] * self.num_hidden_layers
        slots = list(range(self.num_hidden_layers))
        for kind in {*types}:
            of_kind = [layer for layer in slots if types[layer] == kind]
            attending = [layer for layer in of_kind if self.shape_of(layer)[1]]
            order = attending + [layer for layer in of_kind if layer not in attending]
            for slot, layer in zip(of_kind, order, strict=True):
                slots[layer] = slot
        return slots


class LayerConfig:
    """A model's config with other sizes; everything else is read from the model's own, so that a
    later change of attention backend reaches the layers."""

    def __init__(self, config: PretrainedConfig, **sizes: int) -> None:
        self.__dict__.update(sizes, _whole=config)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_whole":  # not there yet while being copied
            raise AttributeError(name)
        return getattr(self._whole, name)


class SharedOut:
    """In the place of a KV cache: keys and values are kept once for every KV head, and handed out
    once for every query head. Without a cache it only does the latter."""

    def __init__(self, cache: Cache | None, query_groups: Sequence[int]) -> None:
        self._cache = cache
        self._query_groups = query_groups

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, ...]:
        """[batch, KV heads, new, head_dim] → [batch, query heads, all, head_dim], twice."""
        if self._cache is not None:
            keys, values = self._cache.update(keys, values, layer_idx, *args, **kwargs)
        counts = torch.tensor(self._query_groups, device=keys.device)
        return tuple(
            states.repeat_interleave(counts, dim=1, output_size=sum(self._query_groups))
            for states in (keys, values)
        )


class ShareOut:
    """Before an attention runs: gives it a `SharedOut` for a cache."""

    def __init__(self, query_groups: Sequence[int]) -> None:
        self.query_groups = tuple(query_groups)

    def __call__(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:
        shared = SharedOut(kwargs.get("past_key_values"), self.query_groups)
        return args, kwargs | {"past_key_values": shared}


class PerLayerDecoderLayer(GradientCheckpointingLayer):
    """A decoder layer whose attention, MLP or both may be absent, each with its norms.

    Has the modules of the stock layer under their own names.
    """

    def __init__(
        self,
        stock: type[nn.Module],
        config: PretrainedConfig,
        index: int,
        *,
        query_heads: int,
        kv_heads: int,
        ffn: int,
        query_groups: Sequence[int] | None = None,
        around_attention: tuple[str | None, str | None],
        around_mlp: tuple[str | None, str | None],
    ) -> None:
        """around_attention, around_mlp: modules of the stock layer before and behind a sublayer."""
        super().__init__()
        sizes = {
            "num_attention_heads": query_heads or 1,
            "num_key_value_heads": kv_heads or 1,
            "intermediate_size": ffn or 1,
        }
        children = dict(stock(LayerConfig(config, **sizes), index).named_children())
        self.around_attention, self.around_mlp = around_attention, around_mlp
        self.cache_slot = index
        for there, names in (
            (kv_heads > 0, ("self_attn", *around_attention)),
            (ffn > 0, ("mlp", *around_mlp)),
        ):
            for name in filter(None, names):
                self.add_module(name, children[name] if there else None)
        if query_groups and kv_heads:
            attention: Any = self.self_attn
            attention.num_key_value_groups = 1  # kernels get a key and a value for every query head
            attention.register_forward_pre_hook(ShareOut(query_groups), with_kwargs=True)

    def attend(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """[batch, sequence, hidden] → the same behind the attention. `kwargs` are the layer's."""
        if self.self_attn is None:
            self._leave_slot_empty(kwargs.get("past_key_values"), hidden_states)
            return hidden_states
        mixed = self.self_attn(self._through(self.around_attention[0], hidden_states), **kwargs)[0]
        return hidden_states + self._through(self.around_attention[1], mixed)

    def feed(self, hidden_states: Tensor) -> Tensor:
        """[batch, sequence, hidden] → the same behind the MLP."""
        if self.mlp is None:
            return hidden_states
        widened = self.mlp(self._through(self.around_mlp[0], hidden_states))
        return hidden_states + self._through(self.around_mlp[1], widened)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        return self.feed(self.attend(hidden_states, **kwargs))

    def _leave_slot_empty(self, cache: Cache | None, like: Tensor) -> None:
        """Of nothing rather than unset: assisted decoding crops every slot of a cache."""
        slots = getattr(cache, "layers", ())
        if self.cache_slot < len(slots) and slots[self.cache_slot].keys is None:
            slots[self.cache_slot].keys = slots[self.cache_slot].values = like.new_empty(0, 0, 0, 0)

    def _through(self, name: str | None, states: Tensor) -> Tensor:
        passed: Tensor = states if name is None else getattr(self, name)(states)
        return passed


class PerLayerModel:
    """Before a stock model among the bases: builds each decoder layer in its own shape."""

    stock_layer: ClassVar[type[nn.Module]]
    around_attention: ClassVar[tuple[str | None, str | None]] = ("input_layernorm", None)
    around_mlp: ClassVar[tuple[str | None, str | None]] = ("post_attention_layernorm", None)

    _no_split_modules: ClassVar = ["PerLayerDecoderLayer"]
    _can_record_outputs: ClassVar[dict[str, Any]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._can_record_outputs = {
            **cls._can_record_outputs,
            "hidden_states": PerLayerDecoderLayer,
        }

    def __init__(self: Any, config: PerLayerConfig) -> None:
        config.check_shapes()
        with without_layers(config):
            super().__init__(config)  # type: ignore[call-arg]
        layers = []
        for index, slot in enumerate(config.cache_slots()):
            query_heads, kv_heads, ffn = config.shape_of(index)
            groups = config.groups_of(index)
            layer = self.decoder_layer(config, index, query_heads, kv_heads, ffn, groups)
            layer.cache_slot = slot
            if layer.self_attn is not None:
                layer.self_attn.layer_idx = slot
            layers.append(layer)
        self.layers = nn.ModuleList(layers)
        self.post_init()

    @classmethod
    def decoder_layer(
        cls,
        config: PretrainedConfig,
        index: int,
        query_heads: int,
        kv_heads: int,
        ffn: int,
        query_groups: Sequence[int] | None = None,
    ) -> PerLayerDecoderLayer:
        """One layer of a given shape; only the sizes come from the arguments, not from `config`.

        Zero heads leave out the attention and its norms, zero `ffn` the MLP and its norms. With
        `query_groups`, the KV heads serve so many query heads each.
        """
        return PerLayerDecoderLayer(
            cls.stock_layer,
            config,
            index,
            query_heads=query_heads,
            kv_heads=kv_heads,
            ffn=ffn,
            query_groups=query_groups,
            around_attention=cls.around_attention,
            around_mlp=cls.around_mlp,
        )


class PerLayerForCausalLM:
    """Before a stock causal language model among the bases: puts a `PerLayerModel` in it."""

    per_layer_model: ClassVar[type]

    _no_split_modules: ClassVar = ["PerLayerDecoderLayer"]

    def __init__(self: Any, config: PerLayerConfig) -> None:
        with without_layers(config):
            super().__init__(config)  # type: ignore[call-arg]
        self.model = self.per_layer_model(config)
        self.post_init()

    def _get_static_cache_init_shape(self) -> None:
        # Asked by generate() for one KV shape up front; ours differ, and are made when first used.
        return None


@contextmanager
def without_layers(config: PretrainedConfig) -> Iterator[None]:
    """Stock constructors then make everything but the layers, which would all be of one shape."""
    layers = config.num_hidden_layers
    config.num_hidden_layers = 0
    try:
        yield
    finally:
        config.num_hidden_layers = layers
