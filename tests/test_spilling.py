"""Caches on the host and back, bit for bit, whatever their arrays are."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jentropy import models
from jentropy.models.caches import Cache

from .conftest import same_bits, same_tree
from .test_layer_stacks import CONFIG

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def noise(shape, dtype) -> jax.Array:
    """Every bit pattern is possible: NaN payloads and -0 among them."""
    width = np.dtype(dtype).itemsize
    codes = np.random.default_rng(0).integers(0, 256, (*shape, width), np.uint8)
    return jax.lax.bitcast_convert_type(jnp.asarray(codes), dtype)


# Keys and values of a ring, latents of DeepSeek, a state of one number to a layer.
ARRAYS = {
    "ring": ((3, 2, 2, 5, 8), jnp.bfloat16),
    "latents": ((2, 1, 40, 24), jnp.bfloat16),
    "float32": ((2, 3, 1, 7, 4), jnp.float32),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_every_bit_comes_back(name):
    shape, dtype = ARRAYS[name]
    array = noise(shape, dtype)
    cache = Cache(arrays=(array, array[::-1]), sliding=name == "ring")
    spilled = models.spill(cache)
    assert spilled.bits_per_value >= 8 * dtype(0).nbytes * 0.9  # noise has no less
    again = spilled.restore()
    assert again.sliding == cache.sliding
    for one, expected in zip(again.arrays, cache.arrays, strict=True):
        assert same_bits(one, expected)


def test_sequences_that_waited_go_on():
    config = dataclasses.replace(CONFIG, num_layers=2, windows=(7, None))
    model = models.Decoder(config, rngs=nnx.Rngs(0))
    prompts = [np.arange(1, 31).tolist(), [5, 6]]
    state = models.prefill(model, prompts, seed=3)
    spilled = models.spill(state)
    assert not any(isinstance(leaf, jax.Array) for leaf in spilled.leaves)
    # Slots behind the longest sequence hold nothing: they are neither coded nor counted.
    assert [one.packed[0][0].shape[-1] for one in spilled.caches] == [7, 30]
    again = spilled.restore()
    assert same_tree(
        [c.arrays[0][..., :30, :] for c in again.cache],
        [c.arrays[0][..., :30, :] for c in state.cache],
    )
    sampling = models.Sampling(temperature=1.0)
    found, expected = (models.advance(model, one, 6, sampling) for one in (again, state))
    assert same_bits(found.tokens, expected.tokens)
    assert same_bits(found.logits, expected.logits)


def test_the_known_ratio(shared):
    """Keys and values of pylm over Python's own source: 10.45 bits of 16."""
    source = shared / "checkpoints" / "pylm"
    model, tokenizer = models.load(source), models.load_tokenizer(source)
    ids = tokenizer.encode(Path(dataclasses.__file__).read_text()).ids[:512]
    spilled = models.spill(models.prefill(model, [ids]))
    assert spilled.bits_per_value == pytest.approx(10.5, abs=0.15)
    (spilled_cache,) = spilled.caches
    assert spilled_cache.empty.arrays[0].dtype == jnp.bfloat16
