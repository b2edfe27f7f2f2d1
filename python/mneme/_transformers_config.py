# SPDX-License-Identifier: Apache-2.0
"""What the configurations of Hugging Face's transformers say about attention, without transformers.

Rotary frequencies follow transformers' modeling_rope_utils.py.
"""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mneme._card import Layer, Rotary
from mneme._errors import InvalidArgument
from mneme._numbers import RotaryLayout

# Families whose attention is Llama's up to the fields that are read below.
_HALVES = {
    "gemma", "gemma2", "gemma3", "gemma3_text", "gpt_neox", "granite", "llama", "mistral", "mixtral", "olmo", "olmo2",
    "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3", "stablelm", "starcoder2",
}
_INTERLEAVED = {"cohere", "cohere2", "glm", "glm4"}
_REFUSED = {
    "gpt_oss": "its heads have sinks, which are weights and no rows",
    "bloom": "its positions are biases of the scores (ALiBi)",
    "mpt": "its positions are biases of the scores (ALiBi)",
}


class _Config:
    """One way to read a configuration: an object's attributes or a dict's entries."""

    def __init__(self, config: Any) -> None:
        self._config = config

    def get(self, name: str, default: Any = None) -> Any:
        config = self._config
        value = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
        return default if value is None else value

    def integer(self, name: str, default: Any = None) -> int:
        value = self.get(name, default)
        if not isinstance(value, int) or value < 1:
            raise InvalidArgument(f"config.{name}: expected an integer of 1 or more, got {value!r}")
        return value


def describe(config: Any, wanted: list[int] | None, strict: bool) -> tuple[str, list[Layer]]:
    """The model's name and the layers that get a memory."""
    outer = _Config(config)
    text = outer.get("text_config")  # of models that also see or hear
    model = outer if text is None else _Config(text)
    family = str(model.get("model_type", outer.get("model_type", "")))
    _refuse(model, family, strict)
    count = model.integer("num_hidden_layers")
    numbers = wanted if wanted is not None else [n for n in range(count) if _window(model, family, n) == 0]
    for number in numbers:
        if not 0 <= number < count:
            raise InvalidArgument(f"layers: expected numbers of 0 to {count - 1}, got {number}")
    if not numbers:
        raise InvalidArgument("layers: expected numbers of layers, since no layer of the model has global attention")
    name = outer.get("_name_or_path") or outer.get("name_or_path") or family
    return str(name), [_layer(model, family, number) for number in numbers]


def _refuse(model: _Config, family: str, strict: bool) -> None:
    reason = _REFUSED.get(family)
    if model.get("is_encoder_decoder", False):
        reason = "it has cross-attention"
    elif model.get("kv_lora_rank") is not None:
        reason = "it caches a latent vector instead of keys and values (MLA)"
    elif model.get("alibi", False):
        reason = "its positions are biases of the scores (ALiBi)"
    if reason is not None:
        raise InvalidArgument(f"config: a card cannot describe a model of type {family!r}: {reason}")
    if strict and family not in _HALVES | _INTERLEAVED:
        known = ", ".join(sorted(_HALVES | _INTERLEAVED))
        raise InvalidArgument(
            f"config.model_type: expected one of {known}, got {family!r} (strict=False takes it as a llama)"
        )


def _is_sliding(model: _Config, family: str, number: int) -> bool:
    types = model.get("layer_types")
    if types is not None:
        return str(types[number]) == "sliding_attention"
    if family in ("gemma2", "gemma3", "gemma3_text", "cohere2"):  # older configurations
        pattern = int(model.get("sliding_window_pattern", {"gemma2": 2, "cohere2": 4}.get(family, 6)))
        return (number + 1) % pattern != 0
    if family in ("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"):
        return bool(model.get("use_sliding_window", False)) and number >= int(model.get("max_window_layers", 0))
    if family == "smollm3" and not model.get("use_sliding_window", False):
        return False
    return model.get("sliding_window") is not None


def _window(model: _Config, family: str, number: int) -> int:
    """The layer's sliding window in tokens; 0: global attention."""
    return int(model.get("sliding_window", 0)) if _is_sliding(model, family, number) else 0


def _layer(model: _Config, family: str, number: int) -> Layer:
    q_heads = model.integer("num_attention_heads")
    head_dim = model.get("head_dim")
    if head_dim is None:
        head_dim = model.integer("hidden_size") // q_heads
    return Layer(
        layer=number,
        q_heads=q_heads,
        kv_heads=model.integer("num_key_value_heads", q_heads),
        key_dim=head_dim,
        scale=_scale(model, family),
        soft_cap=float(model.get("attn_logit_softcapping", 0)),
        window=_window(model, family, number),
        rotary=_rotary(model, family, number, head_dim),
    )


def _scale(model: _Config, family: str) -> float:
    """The factor of q·k; 0: the usual one."""
    if family == "granite":
        return float(model.get("attention_multiplier", 1))
    scalar = model.get("query_pre_attn_scalar")
    return 0.0 if scalar is None else 1 / math.sqrt(float(scalar))


def _parameters(model: _Config, family: str, sliding: bool) -> dict[str, Any]:
    """theta and scaling of a layer, from `rope_parameters` (transformers 5) or from the fields before it."""
    given = model.get("rope_parameters")
    if given is not None:
        kind = "sliding_attention" if sliding else "full_attention"
        return dict(given.get(kind, given))
    theta = model.get("rope_theta", model.get("rotary_emb_base", 10000.0))
    if family in ("gemma3", "gemma3_text") and sliding:
        return {"rope_theta": model.get("rope_local_base_freq", 10000.0)}
    scaling = model.get("rope_scaling") or {}
    return {"rope_theta": theta, "rope_type": scaling.get("type", "default"), **scaling}


def _has_rotary(model: _Config, family: str, number: int) -> bool:
    if family == "smollm3":
        uses = model.get("no_rope_layers")  # in spite of its name: 1 where a layer has rotary embedding
        if uses is not None:
            return bool(uses[number])
        return (number + 1) % int(model.get("no_rope_layer_interval", 4)) != 0
    if family == "cohere2":
        return _is_sliding(model, family, number)
    return True


def _rotary(model: _Config, family: str, number: int, head_dim: int) -> Rotary | None:
    if not _has_rotary(model, family, number):
        return None
    parameters = _parameters(model, family, _is_sliding(model, family, number))
    default_share = {"gpt_neox": 0.25, "phi": 0.5, "stablelm": 0.25, "glm": 0.5, "glm4": 0.5}.get(family, 1.0)
    share = parameters.get("partial_rotary_factor")
    if share is None:
        share = model.get("partial_rotary_factor", model.get("rotary_pct", default_share))
    pairs = int(head_dim * float(share)) // 2
    frequencies, magnitude = _frequencies(parameters, pairs, int(model.get("max_position_embeddings", 0)))
    layout: RotaryLayout = "interleaved" if family in _INTERLEAVED else "halves"
    return Rotary(tuple(frequencies), layout, magnitude)


def _frequencies(parameters: Mapping[str, Any], pairs: int, max_positions: int) -> tuple[Sequence[float], float]:
    """Inverse frequencies and magnitude."""
    theta = float(parameters.get("rope_theta") or 10000.0)
    plain = [theta ** (-i / pairs) for i in range(pairs)]
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind in ("default", None):
        return plain, 1.0
    if kind == "linear":
        return [frequency / float(parameters["factor"]) for frequency in plain], 1.0
    if kind == "llama3":
        return _llama3(plain, parameters), 1.0
    if kind == "yarn":
        return _yarn(plain, theta, parameters, max_positions)
    raise InvalidArgument(
        f"config.rope_type: expected 'default', 'linear', 'llama3' or 'yarn', got {kind!r}: its frequencies "
        "change with the length of the text, and a card has one set"
    )


def _llama3(plain: Sequence[float], parameters: Mapping[str, Any]) -> list[float]:
    factor, length = float(parameters["factor"]), float(parameters["original_max_position_embeddings"])
    low, high = float(parameters["low_freq_factor"]), float(parameters["high_freq_factor"])
    result = []
    for frequency in plain:
        wavelength = 2 * math.pi / frequency
        if wavelength < length / high:
            result.append(frequency)
        elif wavelength > length / low:
            result.append(frequency / factor)
        else:
            smooth = (length / wavelength - low) / (high - low)
            result.append((1 - smooth) * frequency / factor + smooth * frequency)
    return result


def _yarn(plain: Sequence[float], theta: float, parameters: Mapping[str, Any],
          max_positions: int) -> tuple[list[float], float]:
    pairs = len(plain)
    length = float(parameters.get("original_max_position_embeddings") or max_positions)
    factor = float(parameters["factor"])

    def pair_of(turns: float) -> float:
        """The pair that turns this often over the original length."""
        return pairs * math.log(length / (turns * 2 * math.pi)) / math.log(theta)

    first = pair_of(float(parameters.get("beta_fast") or 32))
    last = pair_of(float(parameters.get("beta_slow") or 1))
    if parameters.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * pairs - 1)
    span = max(last - first, 0.001)
    frequencies = []
    for i, frequency in enumerate(plain):
        stretched = min(max((i - first) / span, 0), 1)
        frequencies.append(frequency / factor * stretched + frequency * (1 - stretched))
    return frequencies, _yarn_magnitude(factor, parameters)


def _yarn_magnitude(factor: float, parameters: Mapping[str, Any]) -> float:
    def scale(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    given = parameters.get("attention_factor")
    if given is not None:
        return float(given)
    mscale, all_dim = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if mscale and all_dim:
        return scale(float(mscale)) / scale(float(all_dim))
    return scale(1.0)
