"""compress and decompress on pytrees: every dtype, every shape, where they lived."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jentropy
from jentropy.containers import coder, trees
from jentropy.containers import tensor as tensor_lib
from jentropy.errors import ChecksumError, CorruptError, InputError, UnsupportedError

from .conftest import same_bits

DTYPES = [
    *("float16", "float32", "float64", "bool", "uint8", "int8", "uint16", "int16", "uint32"),
    *("int32", "uint64", "int64", "complex64", "complex128"),
    *(ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float8_e8m0fnu),
    *(ml_dtypes.float4_e2m1fn, ml_dtypes.int4, ml_dtypes.uint4),
]
SHAPES = [(), (1,), (0,), (3, 0, 2), (7,), (5, 7, 11), (4096,), (4097,), (1, 70_001)]


def bits(shape, dtype, seed=0) -> np.ndarray:
    """Any bits, as far as the dtype has all of them."""
    dtype = np.dtype(dtype)
    rng = np.random.default_rng(seed)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    raw = rng.integers(0, 256, (*shape, dtype.itemsize), dtype=np.uint8)
    if dtype.name in ("float4_e2m1fn", "int4", "uint4"):
        raw &= 0x0F
    return raw.view(dtype).reshape(shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_every_dtype_and_shape_comes_back(dtype):
    tree = {str(shape): bits(shape, dtype) for shape in SHAPES}
    back = jentropy.decompress(jentropy.compress(tree))
    assert all(same_bits(back[key], values) for key, values in tree.items())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_every_pattern_of_a_float_comes_back(dtype):
    dtype = np.dtype(jnp.dtype(dtype))
    codes = np.arange(1 << 16, dtype=np.uint32)
    codes = codes << 16 | 0xBEEF if dtype.itemsize == 4 else codes.astype(np.uint16)
    few = np.resize(codes[0x3C00:0x3C40], 1 << 20)  # so that the codec has something to gain
    values = np.concatenate([codes, few]).view(dtype)
    packed = jentropy.compress(values)
    assert packed.header.coding.codec in ("planes", "context")
    assert packed.bits_per_weight < 0.6 * 8 * dtype.itemsize
    assert same_bits(jentropy.decompress(packed), values)


@pytest.mark.parametrize("shape", [(1 << 20, 3), (3, 1 << 20), (1000, 2100), (2_500_000,)])
def test_tensors_of_several_chunks(shape):
    values = (np.random.default_rng(1).standard_normal(shape) * 0.02).astype(ml_dtypes.bfloat16)
    packed = jentropy.compress(values)
    assert len(packed.header.chunks) > 1
    row = shape[-1]
    if row <= tensor_lib.CHUNK_WEIGHTS:
        assert packed.header.chunk_weights % row == 0
    assert 10 < packed.bits_per_weight < 10.7
    assert same_bits(jentropy.decompress(packed), values)


def test_trees_keep_their_structure_and_their_kind():
    tree = {
        "jax": jnp.arange(5, dtype=jnp.bfloat16),
        "numpy": [np.arange(5), (np.float16(2), None)],
        "fortran": np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4)),
        "strided": np.arange(20, dtype=np.float32)[::2],
    }
    packed = jentropy.compress(tree)
    back = jentropy.decompress(packed)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(tree), strict=True):
        assert same_bits(a, np.asarray(b) if np.isscalar(b) else b)
    again = jentropy.compress(packed)  # nothing is compressed twice
    assert jax.tree.leaves(again)[0] is jax.tree.leaves(packed)[0]


def test_a_bare_array_is_a_tree_of_one_leaf():
    array = jnp.ones((3, 4), jnp.float16)
    packed = jentropy.compress(array)
    assert isinstance(packed, jentropy.CompressedTensor)
    assert (packed.shape, packed.dtype) == ((3, 4), np.float16)
    assert same_bits(jentropy.decompress(packed), array)


def test_a_compressed_tensor_is_a_pytree_of_its_payload():
    packed = jentropy.compress(np.ones((64, 64), np.float16))
    (payload,) = jax.tree.leaves(packed)
    assert payload.dtype == np.uint8
    moved = jax.device_put(packed)
    assert same_bits(jentropy.decompress(moved), np.ones((64, 64), np.float16))
    assert hash(packed.header) == hash(dataclasses.replace(packed.header))


@pytest.mark.parametrize("size", [10, 100_000, 3_000_000])
def test_what_is_packed_is_no_view_of_what_was_given(size):
    values = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)  # stored
    before = values.copy()
    packed = jentropy.compress(values)
    values += 1
    np.testing.assert_array_equal(jentropy.decompress(packed), before)


def test_the_same_input_gives_the_same_bytes_whatever_it_comes_with():
    values = np.random.default_rng(2).standard_normal((300, 300)).astype(np.float16)
    alone = jentropy.compress(values)
    other = np.random.default_rng(3).standard_normal(100_000).astype(np.float32)
    together = jentropy.compress([other, values, other])[1]
    assert alone.header == together.header
    np.testing.assert_array_equal(alone.payload, together.payload)


@pytest.mark.parametrize(
    "leaf",
    [
        *(b"text", object(), np.array(["a"]), np.array([1], "M8[s]")),
        *(np.zeros(5, "V8"), np.ones(2, np.longdouble), np.zeros(2, "i4,f4")),
    ],
    ids=lambda leaf: type(leaf).__name__ + str(getattr(leaf, "dtype", "")),
)
def test_what_is_no_numeric_array_is_refused_by_its_path(leaf):
    with pytest.raises(InputError, match=r"layers\.0\.w"):
        jentropy.compress({"layers": [{"w": leaf}]})


def test_keys_that_do_not_sort_are_refused():
    with pytest.raises(InputError, match="keys of a dict"):
        jentropy.compress({1: np.ones(1), "1": np.ones(1)})


def test_foreign_byte_order_is_refused():
    with pytest.raises(InputError, match="byte order"):
        jentropy.compress({"w": np.arange(3, dtype=">f4")})


def test_damage_is_noticed_by_tensor():
    packed = jentropy.compress({"a": np.ones(10), "b": bits((50, 50), np.float16)})
    payload = packed["b"].payload[0].copy()
    payload[100] ^= 1
    packed["b"] = dataclasses.replace(packed["b"], payload=(payload,))
    with pytest.raises(ChecksumError, match="'b'"):
        jentropy.decompress(packed)
    packed["b"] = dataclasses.replace(packed["b"], payload=(payload[:-1],))
    with pytest.raises(InputError, match=r"'b'.*uint8 arrays of 5000 bytes.*found uint8\[4999\]"):
        jentropy.decompress(packed)


def test_64_bits_are_never_cut_to_32():
    wide = np.array([[1 << 40, 3]])
    with pytest.raises(UnsupportedError, match="int64"):
        jentropy.to_resident(wide)
    packed = jentropy.compress({"w": wide})
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with pytest.raises(UnsupportedError, match="int64"):
        jentropy.decompress(trees.with_sharding(packed, device))


def test_a_header_whose_chunks_do_not_fit_is_refused():
    header = jentropy.compress(np.ones(10)).header
    with pytest.raises(CorruptError, match="chunks"):
        dataclasses.replace(header, shape=(11,))


SLICES = [
    np.s_[:],
    np.s_[3],
    np.s_[5:9],
    np.s_[:, 2],
    np.s_[-1, 1:2, ::-1],
    np.s_[::3, 1, 4:900:7],
    np.s_[..., 17],
    np.s_[4:4],
    np.s_[2, ..., 5:6],
    np.s_[9:1:-2, :, :3],
]


@pytest.mark.parametrize("index", SLICES, ids=str)
def test_slices_are_those_of_the_whole(index):
    values = np.random.default_rng(8).standard_normal((11, 3, 1000)).astype(np.float16)
    packed = jentropy.compress(values)
    part = jentropy.decompress_slice(packed, index)
    expected = values[index]
    assert part.shape == expected.shape
    assert part.tobytes() == np.ascontiguousarray(expected).tobytes()


@pytest.mark.parametrize("shape", [(5, 1_000_000), (3, 2_500_001), (3_000_000,)])
def test_a_slice_decodes_its_own_chunks_only(shape, monkeypatch):
    values = np.random.default_rng(9).integers(0, 100, shape).astype(np.uint8)
    packed = jentropy.compress(values)
    decoded = []
    decode = coder.decode

    def counting(items):
        items = list(items)
        decoded.extend(items)
        return decode(items)

    monkeypatch.setattr(coder, "decode", counting)
    index = np.s_[1] if len(shape) > 1 else np.s_[10:20]
    assert (jentropy.decompress_slice(packed, index) == values[index]).all()
    step = packed.header.chunk_weights
    start = shape[-1] if len(shape) > 1 else 10
    stop = 2 * shape[-1] if len(shape) > 1 else 20
    assert len(decoded) == (stop - 1) // step - start // step + 1


@pytest.mark.parametrize(
    "index",
    [
        *(np.s_[11], np.s_[:, :, :, 0], "x", None, np.s_[..., ...], 1.5, True),
        *(np.array([0, 1]), np.s_[..., [0, 1]], slice(1, 2, 0), slice("a", None)),
    ],
)
def test_indices_that_there_are_not_are_refused(index):
    packed = jentropy.compress(np.zeros((11, 3, 5), np.float16))
    with pytest.raises(InputError, match=r"integers and slices of \[11, 3, 5\]"):
        jentropy.decompress_slice(packed, index)


def test_scalars_and_empty_tensors_have_slices_too():
    assert jentropy.decompress_slice(jentropy.compress(np.float32(3)), ()).tolist() == 3.0
    empty = jentropy.compress(np.zeros((0, 4), np.float32))
    assert jentropy.decompress_slice(empty, np.s_[:, 1]).shape == (0,)


def test_an_empty_leaf_may_come_first():
    tree = {"a": np.zeros((0, 3), np.float32), "b": np.arange(300, dtype=np.float32)}
    found = jentropy.decompress(jentropy.compress(tree))
    assert found["a"].shape == (0, 3)
    assert (found["b"] == tree["b"]).all()
