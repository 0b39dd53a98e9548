"""BitStack's blocks, as many as there is room for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jentropy.errors import InputError, UnsupportedError
from jentropy.quantization import RECIPES, Recipe, quantize_weight
from jentropy.quantization.alphabets import SignRanks
from jentropy.quantization.any_size import fewer_blocks, size_of, within


@pytest.fixture(scope="module")
def weights():
    keys = jax.random.split(jax.random.key(0), 2)
    return {f"w{n}": (1 + n) * jax.random.normal(key, (40, 72)) for n, key in enumerate(keys)}


@pytest.fixture(scope="module")
def made(weights):
    return {name: quantize_weight(w, RECIPES["bitstack"]) for name, w in weights.items()}


def test_fewer_blocks_are_those_that_were_made_first(weights, made):
    alone = Recipe(alphabet=SignRanks(blocks=1))
    first = fewer_blocks(made["w0"], 1)
    assert first.number_format == quantize_weight(weights["w0"], alone).number_format
    errors = [
        float(jnp.square(fewer_blocks(made["w0"], n).dequantize() - weights["w0"]).sum())
        for n in (1, 2, 3)
    ]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    on_host = jax.tree.map(np.asarray, first)
    np.testing.assert_allclose(on_host.dequantize(), first.dequantize(), rtol=1e-6)


def test_room_is_given_where_it_brings_most(made):
    each = size_of(made["w0"], 1)
    kept = within(made, 4 * each)
    assert {name: one.codes["left"].shape[0] for name, one in kept.items()} == {"w0": 1, "w1": 3}
    kept = within(made, 4 * each + 1, {"w0": 100.0})
    assert {name: one.codes["left"].shape[0] for name, one in kept.items()} == {"w0": 3, "w1": 1}
    with pytest.raises(InputError, match=f"at least {2 * each}"):
        within(made, 2 * each - 1)


def test_other_tensors_are_refused(made):
    with pytest.raises(UnsupportedError, match="SIGN_RANKS"):
        fewer_blocks(quantize_weight(jnp.eye(32), RECIPES["rtn"]), 1)
    with pytest.raises(InputError, match="1 to 3"):
        fewer_blocks(made["w0"], 4)
