"""The fixed-rate code of resident BF16 weights and its reference layout."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jentropy
from jentropy import formats
from jentropy import pallas_kernels as kernels
from jentropy.codecs import window12
from jentropy.errors import UnsupportedError
from jentropy.pallas_kernels.matrices import Matrices
from jentropy.pallas_kernels.reference_window12 import layout as reference_window12

from .conftest import same_bits

ALL = np.arange(1 << 16, dtype=np.uint16)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=256, max_size=256))
def test_the_window_leaves_the_fewest_escapes(counts):
    counts = np.array(counts)
    top = window12.choose_top(counts)
    covered = {t: counts[t - 14 : t + 1].sum() for t in range(15, 255)}
    assert covered[top] == max(covered.values())


def test_a_single_outlier_does_not_move_the_window():
    counts = np.zeros(256, int)
    counts[110:122] = 1000
    counts[250] = 1
    assert 121 <= window12.choose_top(counts) <= 124


@pytest.mark.parametrize("top", [15, 122, 127, 254])
def test_every_code_has_a_slot_or_is_an_escape(top):
    slots = np.asarray(window12.to_slots(jnp.asarray(ALL), top))
    escapes = np.asarray(window12.is_escape(jnp.asarray(ALL), top))
    exponent = (ALL >> 7) & 0xFF
    inside = (exponent >= top - 14) & (exponent <= top) & (exponent > 0) & (exponent < 255)
    zero = (ALL & 0x7FFF) == 0
    np.testing.assert_array_equal(escapes, ~(inside | zero))
    assert not (slots & 0x7800).any(), "bits 14 to 11 are free"
    assert (slots[escapes] == 0).all()
    back = np.asarray(window12.from_slots(jnp.asarray(slots), top))
    np.testing.assert_array_equal(back[~escapes], ALL[~escapes])


def test_four_pairs_fit_three_words():
    slots = np.random.default_rng(0).integers(0, 1 << 16, (1000, 4, 2)).astype(np.uint32) & 0x87FF
    pairs = slots[..., 0] | slots[..., 1] << 16
    words = window12.pack(jnp.asarray(pairs))
    assert words.shape == (1000, 3)
    np.testing.assert_array_equal(window12.unpack(words), pairs)


def bf16(codes: np.ndarray) -> jax.Array:
    return jnp.asarray(codes.view(ml_dtypes.bfloat16))


SHAPES = [(1, 1), (3, 5), (16, 8), (7, 33), (64, 129), (2, 3, 40)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_decode_gives_gaussian_weights_back(shape):
    values = np.random.default_rng(1).standard_normal(shape) * 0.02
    dense = jnp.asarray(values, jnp.bfloat16)
    weight = kernels.to_resident(dense, "reference")
    assert same_bits(kernels.decode(weight), dense)
    assert same_bits(jax.jit(kernels.decode)(weight), dense)


def test_decode_gives_every_pattern_back():
    """Most patterns are escapes here, so the layout must be asked for: it would not pay."""
    codes = np.random.default_rng(2).permutation(ALL).reshape(128, 512)
    number_format = formats.FORMATS["BF16"]
    matrices = Matrices(number_format=number_format, codes={"code": jnp.asarray(codes)})
    arrays, options = reference_window12.pack(matrices)
    weight = kernels.ResidentTensor(
        arrays=arrays,
        options=tuple(options.items()),
        layout=reference_window12.LAYOUT.name,
        number_format=number_format,
        logical=codes.shape,
    )
    decoded = np.asarray(kernels.decode(weight)).view(np.uint16)
    np.testing.assert_array_equal(decoded, codes)
    ids = jnp.array([[0, 127], [5, 5]])
    rows = np.asarray(kernels.take_rows(weight, ids)).view(np.uint16)
    np.testing.assert_array_equal(rows, codes[np.asarray(ids)])


def special_weights() -> np.ndarray:
    codes = np.array(
        jnp.asarray(np.random.default_rng(3).standard_normal((64, 72)) * 0.02, jnp.bfloat16)
    ).view(np.uint16)
    special = [0x0000, 0x8000, 0x0001, 0x807F, 0x7F80, 0xFF80, 0x7FC1, 0xFFFF, 0x7F7F, 0x0080]
    codes[5, : len(special)] = special
    codes[63, 71] = 0x7F81
    return codes


def test_specials_survive_among_weights():
    codes = special_weights()
    weight = kernels.to_resident(bf16(codes), "reference")
    assert isinstance(weight, kernels.ResidentTensor)
    np.testing.assert_array_equal(np.asarray(kernels.decode(weight)).view(np.uint16), codes)
    rows = kernels.take_rows(weight, jnp.array([63, 5, 0]))
    np.testing.assert_array_equal(np.asarray(rows).view(np.uint16), codes[[63, 5, 0]])


def test_rows_outside_are_clipped():
    dense = bf16(special_weights())
    weight = kernels.to_resident(dense, "reference")
    ids = jnp.array([-3, 64, 1000])
    for w in (dense, weight):
        assert same_bits(kernels.take_rows(w, ids), dense[jnp.array([0, 63, 63])])


def test_sizes():
    dense = jnp.asarray(np.random.default_rng(4).standard_normal((1024, 1024)) * 0.02, jnp.bfloat16)
    weight = kernels.to_resident(dense, "reference")
    assert 12 <= weight.bits_per_weight < 12.06
    assert weight.dtype == jnp.bfloat16
    assert weight.nbytes < 0.76 * dense.nbytes


def test_what_would_not_shrink_rests_dense():
    noise = bf16(np.random.default_rng(5).integers(0, 1 << 16, (32, 32)).astype(np.uint16))
    for array in (
        noise,
        jnp.ones(100, jnp.bfloat16),
        jnp.ones((4, 4)),
        jnp.ones((0, 8), "bfloat16"),
    ):
        assert same_bits(kernels.to_resident(array, "reference"), array)


def test_resident_from_the_archive_of_a_tree():
    tree = {"w": bf16(special_weights()), "norm": jnp.ones(72, jnp.bfloat16), "n": jnp.arange(3)}
    resident = jentropy.to_resident(jentropy.compress(tree), "reference")
    assert isinstance(resident["w"], jentropy.ResidentTensor)
    assert same_bits(jentropy.decode(resident["w"]), tree["w"])
    assert same_bits(resident["norm"], tree["norm"])
    assert same_bits(resident["n"], tree["n"])


def test_unknown_backends_are_refused_by_name():
    with pytest.raises(UnsupportedError, match="npu"):
        kernels.to_resident(jnp.ones((8, 8), jnp.bfloat16), "npu")
