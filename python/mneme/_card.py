# SPDX-License-Identifier: Apache-2.0
"""Cards: the model that a memory's keys and values come from."""
from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from mneme._errors import InvalidArgument, check
from mneme._native import ffi, lib, new_struct, text
from mneme._numbers import ROTARY_LAYOUTS, RotaryLayout, number_of


def _f32(number: float) -> float:
    """The number as the library stores it, so that a card equals the one that comes back from a memory."""
    return float(np.float32(number))


@dataclasses.dataclass(frozen=True)
class Rotary:
    """The rotary embedding of a layer: pair i of a row at position p turns by p * inverse_frequencies[i] rad.

    The first 2 * len(inverse_frequencies) elements of a row turn. `layout` says which elements are a pair:
    "interleaved" (2i, 2i + 1), as in GGUF files of the Llama family, or "halves" (i, i + pairs), as in Hugging Face's
    models. `magnitude` is YaRN's attention factor.
    """

    inverse_frequencies: tuple[float, ...]
    layout: RotaryLayout = "halves"
    magnitude: float = 1.0

    def __post_init__(self) -> None:
        number_of("layout", self.layout, ROTARY_LAYOUTS)
        object.__setattr__(self, "inverse_frequencies", tuple(_f32(f) for f in self.inverse_frequencies))
        object.__setattr__(self, "magnitude", _f32(self.magnitude))


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer that gets a memory.

    Query head h belongs to KV head h // (q_heads // kv_heads). `value_dim` 0 is key_dim and `scale` 0 is
    1 / sqrt(key_dim). score = scale * q·k; logit = soft_cap * tanh(score / soft_cap), soft_cap 0: logit = score.
    `window` is the model's own sliding window in tokens, 0 for global attention.
    """

    layer: int
    q_heads: int
    kv_heads: int
    key_dim: int
    value_dim: int = 0
    scale: float = 0.0
    soft_cap: float = 0.0
    window: int = 0
    rotary: Rotary | None = None

    def __post_init__(self) -> None:
        if self.value_dim == 0:
            object.__setattr__(self, "value_dim", self.key_dim)
        scale = self.scale if self.scale != 0 else 1 / np.sqrt(max(1, self.key_dim))
        object.__setattr__(self, "scale", _f32(scale))
        object.__setattr__(self, "soft_cap", _f32(self.soft_cap))


@dataclasses.dataclass(frozen=True)
class Card:
    """A model and its layers. A memory keeps the card that it was created with and refuses another model's.

    `fingerprint` is in your own words and should change with the weights. Layers may come in any order; the card has
    them in ascending order.

    >>> card = Card("tiny", "sha256:1f2e", [Layer(0, q_heads=8, kv_heads=2, key_dim=64)])
    >>> card.layers[0].scale
    0.125
    """

    model_name: str
    fingerprint: str
    layers: Sequence[Layer] = ()

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.layers, key=lambda layer: layer.layer))
        object.__setattr__(self, "layers", ordered)

    def layer(self, number: int) -> Layer:
        """The layer with this number of the model's. Raises InvalidArgument where the card does not have it."""
        for layer in self.layers:
            if layer.layer == number:
                return layer
        raise InvalidArgument(f"layer: expected one of {[one.layer for one in self.layers]}, got {number}")

    @classmethod
    def from_transformers(cls, config: Any, *, fingerprint: str, layers: Iterable[int] | None = None,
                          model_name: str | None = None, strict: bool = True) -> Card:
        """The card of a model of Hugging Face's transformers, from its configuration.

        `config` is the model's `config`, its dict, or the content of its config.json; transformers itself is not
        needed. `layers` are the numbers of the layers that get a memory; None: all with global attention.
        `model_name` None: the configuration's `_name_or_path` or `model_type`. `strict` False takes families that this
        version does not know as if they were Llama's.

        Raises InvalidArgument for what a card cannot describe, with the reason.

        >>> config = {"model_type": "llama", "num_hidden_layers": 16, "hidden_size": 2048, "num_attention_heads": 32,
        ...           "num_key_value_heads": 8, "rope_theta": 500000.0}
        >>> card = Card.from_transformers(config, fingerprint="sha256:…", layers=[8])
        >>> card.layers[0].kv_heads, card.layers[0].key_dim, len(card.layers[0].rotary.inverse_frequencies)
        (8, 64, 32)
        """
        from mneme._transformers_config import describe

        name, described = describe(config, None if layers is None else list(layers), strict)
        return cls(model_name or name, fingerprint, described)


def encode(name: str, value: str) -> bytes:
    """A str as a C string."""
    if not isinstance(value, str):
        raise InvalidArgument(f"{name}: expected a str, got {type(value).__name__}")
    encoded = value.encode("utf-8", "surrogateescape")
    if b"\0" in encoded:
        raise InvalidArgument(f"{name}: expected text without NUL characters, got {value!r}")
    return encoded


def _int32(name: str, value: int) -> int:
    if not isinstance(value, (int, np.integer)) or not -(2**31) <= value < 2**31:
        raise InvalidArgument(f"{name}: expected an integer of 32 bits, got {value!r}")
    return int(value)


def _add_layer(card: Any, layer: Layer) -> None:
    desc = new_struct("mneme_layer_desc")
    for field in ("layer", "q_heads", "kv_heads", "key_dim", "value_dim", "window"):
        setattr(desc, field, _int32(field, getattr(layer, field)))
    desc.scale = layer.scale
    desc.soft_cap = layer.soft_cap
    if layer.rotary is not None:
        frequencies = ffi.new("float[]", list(layer.rotary.inverse_frequencies))
        desc.rotary_layout = ROTARY_LAYOUTS[layer.rotary.layout]
        desc.rotary_pairs = len(layer.rotary.inverse_frequencies)
        desc.rotary_inverse_frequencies = frequencies
        desc.rotary_magnitude = layer.rotary.magnitude
    check(lib.mneme_card_add_layer(card, desc))


@contextmanager
def card_handle(card: Card) -> Iterator[Any]:
    """The library's card, for one call."""
    out = ffi.new("mneme_card**")
    model_name = encode("model_name", card.model_name)
    fingerprint = encode("fingerprint", card.fingerprint)
    check(lib.mneme_card_create(model_name, fingerprint, out))
    try:
        for layer in card.layers:
            _add_layer(out[0], layer)
        yield out[0]
    finally:
        lib.mneme_card_release(out[0])


def _layer_of(desc: Any) -> Layer:
    rotary = None
    if desc.rotary_pairs > 0:
        layouts: dict[int, RotaryLayout] = {1: "interleaved", 2: "halves"}
        frequencies = tuple(ffi.unpack(desc.rotary_inverse_frequencies, desc.rotary_pairs))
        rotary = Rotary(frequencies, layouts[desc.rotary_layout], desc.rotary_magnitude)
    return Layer(
        desc.layer, desc.q_heads, desc.kv_heads, desc.key_dim, desc.value_dim, desc.scale, desc.soft_cap, desc.window,
        rotary,
    )


def card_of(memory: Any) -> Card:
    """The card that a memory was created with. Names of more than 255 bytes are cut."""
    info = new_struct("mneme_memory_info")
    check(lib.mneme_memory_get_info(memory, info))
    layers = []
    for index in range(info.layers):
        desc = new_struct("mneme_layer_desc")
        check(lib.mneme_memory_get_layer(memory, index, desc))
        layers.append(_layer_of(desc))
    return Card(text(info.model_name), text(info.weights_fingerprint), layers)
