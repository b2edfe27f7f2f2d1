# SPDX-License-Identifier: Apache-2.0
"""Cards, and what they take from configurations of transformers."""
from __future__ import annotations

import math
import types

import mneme
import numpy as np
import pytest

LLAMA = {"model_type": "llama", "_name_or_path": "meta/llama", "num_hidden_layers": 4, "hidden_size": 256,
         "num_attention_heads": 8, "num_key_value_heads": 2, "rope_theta": 10000.0}


def describe(config, **arguments):
    return mneme.Card.from_transformers(config, fingerprint="sha256:0", **arguments)


def frequencies(card, at=0):
    return np.array(card.layers[at].rotary.inverse_frequencies)


def test_a_card_comes_back_from_a_memory(store):
    layers = [mneme.Layer(5, 8, 2, 64, 32, scale=0.3, soft_cap=50, window=128,
                          rotary=mneme.Rotary((1.0, 0.3, 0.1), "interleaved", 1.3)),
              mneme.Layer(2, 4, 4, 16)]
    card = mneme.Card("möbius", "sha256:…", layers)
    assert [layer.layer for layer in card.layers] == [2, 5]
    assert store.create("m", card).card == card
    assert store.open("m", card).card == card
    assert card.layer(5).value_dim == 32
    assert card.layer(2).value_dim == 16
    assert card.layer(2).scale == 0.25
    with pytest.raises(mneme.InvalidArgument, match="layer"):
        card.layer(3)


@pytest.mark.parametrize(("fields", "word"), [
    ({"q_heads": 3}, "q_heads"), ({"key_dim": 0}, "key_dim"), ({"scale": -1}, "scale"), ({"window": 2**40}, "window"),
    ({"layer": "8"}, "layer"), ({"rotary": mneme.Rotary((1.0,) * 40)}, "rotary_pairs"),
    ({"soft_cap": math.nan}, "soft_cap"),
])
def test_what_no_layer_can_be(store, fields, word):
    layer = mneme.Layer(**{"layer": 1, "q_heads": 4, "kv_heads": 2, "key_dim": 64, **fields})
    with pytest.raises(mneme.InvalidArgument, match=word):
        store.create("m", mneme.Card("m", "f", [layer]))
    with pytest.raises(mneme.InvalidArgument, match="layout"):
        mneme.Rotary((1.0,), "spiral")


def test_llama():
    card = describe(LLAMA)
    assert card.model_name == "meta/llama"
    assert [layer.layer for layer in card.layers] == [0, 1, 2, 3]
    layer = card.layers[0]
    assert (layer.q_heads, layer.kv_heads, layer.key_dim, layer.value_dim, layer.window) == (8, 2, 32, 32, 0)
    assert layer.rotary.layout == "halves"
    np.testing.assert_array_equal(frequencies(card), (10000.0 ** (-np.arange(0, 32, 2) / 32)).astype(np.float32))
    assert describe(types.SimpleNamespace(**LLAMA)) == card
    assert describe(LLAMA, layers=[3, 1], model_name="mine").model_name == "mine"
    assert [layer.layer for layer in describe(LLAMA, layers=[3, 1]).layers] == [1, 3]
    assert describe({"text_config": LLAMA, "model_type": "llava"}, model_name="meta/llama") == card


def test_scaled_rotary():
    plain = frequencies(describe(LLAMA))
    linear = describe({**LLAMA, "rope_scaling": {"type": "linear", "factor": 4.0}})
    np.testing.assert_allclose(frequencies(linear), plain / 4, rtol=1e-6)
    llama3 = frequencies(describe({**LLAMA, "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192}}))
    wavelengths = 2 * np.pi / plain
    np.testing.assert_array_equal(llama3[wavelengths < 2048], plain[wavelengths < 2048])
    np.testing.assert_allclose(llama3[wavelengths > 8192], plain[wavelengths > 8192] / 8, rtol=1e-6)
    between = (wavelengths >= 2048) & (wavelengths <= 8192)
    assert ((llama3[between] < plain[between]) & (llama3[between] > plain[between] / 8)).all()
    assert between.any()
    rope = {"rope_type": "default", "rope_theta": 500.0}
    new_style = describe({**LLAMA, "rope_theta": None, "rope_parameters": rope})
    np.testing.assert_allclose(frequencies(new_style), 500.0 ** (-np.arange(16) / 16), rtol=1e-6)


def test_yarn():
    card = describe({**LLAMA, "max_position_embeddings": 32768, "rope_scaling": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}})
    plain = frequencies(describe(LLAMA))
    assert card.layers[0].rotary.magnitude == np.float32(0.1 * math.log(4) + 1)
    turns = 8192 * plain / (2 * math.pi)
    found = frequencies(card)
    np.testing.assert_array_equal(found[turns > 64], plain[turns > 64])
    np.testing.assert_allclose(found[turns < 0.5], plain[turns < 0.5] / 4, rtol=1e-6)
    assert (np.diff(found) < 0).all()
    # transformers' own numbers for dim 32, theta 10000: the ramp goes from pair 6 to pair 13.
    ramp = np.clip((np.arange(16) - 6) / 7, 0, 1)
    np.testing.assert_allclose(found, plain / 4 * ramp + plain * (1 - ramp), rtol=1e-6)
    given = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192, "attention_factor": 1.5}
    assert describe({**LLAMA, "rope_scaling": given}).layers[0].rotary.magnitude == 1.5


GEMMA3 = {"model_type": "gemma3_text", "num_hidden_layers": 12, "hidden_size": 640, "num_attention_heads": 4,
          "num_key_value_heads": 1, "head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 512,
          "rope_theta": 1e6, "rope_local_base_freq": 10000.0}


def test_sliding_layers_are_left_out():
    old = describe(GEMMA3)
    types_ = ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(12)]
    new = describe({**GEMMA3, "layer_types": types_, "rope_theta": None, "rope_local_base_freq": None,
                    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}})
    assert old == new
    assert [layer.layer for layer in old.layers] == [5, 11]
    assert old.layers[0].scale == 0.0625
    assert describe(GEMMA3, layers=[0]).layers[0].window == 512
    np.testing.assert_allclose(frequencies(describe(GEMMA3, layers=[0]))[1], 10000.0 ** (-1 / 128), rtol=1e-6)
    gemma2 = {**GEMMA3, "model_type": "gemma2", "attn_logit_softcapping": 50.0}
    assert [layer.layer for layer in describe(gemma2).layers] == [1, 3, 5, 7, 9, 11]
    assert describe(gemma2).layers[0].soft_cap == 50


def test_families():
    neox = {"model_type": "gpt_neox", "num_hidden_layers": 2, "hidden_size": 512, "num_attention_heads": 8,
            "rotary_pct": 0.25, "rotary_emb_base": 10000}
    assert len(frequencies(describe(neox))) == 8
    assert describe(neox).layers[0].kv_heads == 8
    assert len(frequencies(describe({**LLAMA, "model_type": "phi3", "partial_rotary_factor": 0.75}))) == 12
    assert len(frequencies(describe({**LLAMA, "model_type": "phi"}))) == 8
    mistral = {**LLAMA, "model_type": "mistral", "sliding_window": 4096}
    with pytest.raises(mneme.InvalidArgument, match="no layer of the model has global attention"):
        describe(mistral)
    assert describe(mistral, layers=[2]).layers[0].window == 4096
    assert len(describe({**mistral, "sliding_window": None}).layers) == 4
    qwen = {**LLAMA, "model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False}
    assert len(describe(qwen).layers) == 4
    sliding = describe({**qwen, "use_sliding_window": True, "max_window_layers": 2})
    assert [layer.layer for layer in sliding.layers] == [0, 1]
    granite = describe({**LLAMA, "model_type": "granite", "attention_multiplier": 0.015625})
    assert granite.layers[0].scale == 0.015625
    smollm3 = describe({**LLAMA, "model_type": "smollm3", "no_rope_layers": [1, 1, 1, 0]})
    assert [layer.rotary is None for layer in smollm3.layers] == [False, False, False, True]
    assert describe({**LLAMA, "model_type": "cohere"}).layers[0].rotary.layout == "interleaved"
    cohere2 = describe({**LLAMA, "model_type": "cohere2", "sliding_window": 4096})
    assert [(layer.layer, layer.rotary) for layer in cohere2.layers] == [(3, None)]


@pytest.mark.parametrize(("change", "word"), [
    ({"model_type": "gpt_oss"}, "sinks"), ({"model_type": "deepseek_v3", "kv_lora_rank": 512}, "MLA"),
    ({"is_encoder_decoder": True}, "cross-attention"), ({"model_type": "novel"}, "strict=False"),
    ({"alibi": True}, "ALiBi"), ({"num_attention_heads": 0}, "num_attention_heads"),
    ({"num_hidden_layers": None}, "hidden"),
    ({"rope_scaling": {"rope_type": "longrope", "factor": 4.0}}, "longrope"),
    ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "dynamic"),
])
def test_what_no_card_can_describe(change, word):
    with pytest.raises(mneme.InvalidArgument, match=word):
        describe({**LLAMA, **change})


def test_an_unknown_family_can_be_taken_as_a_llama():
    assert describe({**LLAMA, "model_type": "novel"}, strict=False) == describe(LLAMA)
    for layers in ([4], [-1], []):
        with pytest.raises(mneme.InvalidArgument, match="layers"):
            describe(LLAMA, layers=layers)
