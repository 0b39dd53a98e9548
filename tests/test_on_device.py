"""Decoding on the device: the same codes as on the host, the same refusals."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jentropy
from jentropy import codecs
from jentropy.codecs import lanes
from jentropy.codecs import on_device as coder
from jentropy.containers import device_hash, on_device, trees
from jentropy.containers.tensor import checksum
from jentropy.errors import ChecksumError, CorruptError

SHAPES = [(700, 3000), (130, 257), (9001,), (2, (1 << 20) + 7), (3, 80, 100)]


def array(shape: tuple[int, ...], dtype=jnp.bfloat16) -> jax.Array:
    rng = np.random.default_rng(sum(shape))
    values = rng.standard_normal(shape) * np.exp(0.5 * rng.standard_normal((*shape[:-1], 1)))
    values *= np.exp(0.5 * rng.standard_normal(shape[-1])) * 0.02
    values.reshape(-1)[::97] = 0
    values.reshape(-1)[5::301] *= 1e3
    return jnp.asarray(np.clip(values, -6e4, 6e4), dtype)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_many_tensors_come_back_together(dtype, monkeypatch):
    tree = {str(shape): array(shape, dtype) for shape in SHAPES}
    packed = jentropy.compress(tree)
    packed = {name: leaf for name, leaf in packed.items() if on_device.decodes(leaf)}
    assert len(packed) >= 4
    monkeypatch.setattr(lanes, "decode", None)  # the host's
    found = trees.decompress_where(packed, on_device.decodes)
    for name in packed:
        values = tree[name]
        assert isinstance(found[name], jax.Array)
        assert found[name].dtype == values.dtype
        assert found[name].shape == values.shape
        assert np.asarray(found[name]).tobytes() == np.asarray(values).tobytes()


def test_batches_keep_their_order(monkeypatch):
    tree = [array((60 + i, 400)) for i in range(5)]
    packed = jentropy.compress(tree)
    monkeypatch.setattr(codecs, "batch_symbols", lambda: 40_000)
    for found, values in zip(trees.decompress_where(packed, on_device.decodes), tree, strict=True):
        assert (found.view(jnp.uint16) == values.view(jnp.uint16)).all()


def test_what_the_device_does_not_decode_comes_from_the_host():
    tree = {"w": array((60, 400)), "f": jnp.ones((30, 30)), "n": np.arange(10), "e": jnp.zeros(0)}
    found = trees.decompress_where(jentropy.compress(tree), on_device.decodes)
    assert isinstance(found["n"], np.ndarray)
    assert jax.tree.map(lambda a, b: bool((a == b).all()), tree, found) == dict.fromkeys(tree, True)


def test_damage_is_refused():
    packed = jentropy.compress({"a": array((60, 400)), "w": array((61, 400))})
    (payload,) = packed["w"].payload
    other = payload.copy()
    other[-2000] ^= 1
    packed["w"] = dataclasses.replace(packed["w"], payload=(other,))
    with pytest.raises(ChecksumError, match="w"):
        trees.decompress_where(packed, on_device.decodes)


@pytest.mark.parametrize("at", [0, 40, 200, 3000])
def test_codes_that_no_encoder_wrote_are_refused_or_decode_to_others(at):
    packed = jentropy.compress({"w": array((60, 400))})
    (item,) = on_device.coded_chunks("w", packed["w"])
    payload = item.payload.copy()
    payload[at] ^= 0x55
    try:
        (codes,) = coder.decode([payload], [item.span])
    except CorruptError:
        return
    assert codes.shape == (24_000,)


def test_codes_are_hashed_on_the_device():
    packed = jentropy.compress({"a": array((60, 400)), "w": array((61, 400))})
    header = packed["w"].header
    (chunk,) = header.chunks
    other = dataclasses.replace(chunk, codes_hash=chunk.codes_hash ^ 1)
    header = dataclasses.replace(header, chunks=(other,))
    packed["w"] = dataclasses.replace(packed["w"], header=header)
    with pytest.raises(ChecksumError, match=r"'w'.*chunk's codes"):
        trees.decompress_where(packed, on_device.decodes)


@pytest.mark.parametrize("size", [1, 120, 121, 511, 512, 513, 1025])
def test_hashes_of_the_device_are_those_of_the_host(size):
    rng = np.random.default_rng(size)
    codes = [rng.integers(0, 1 << 16, size).astype(np.uint16) for _ in range(3)]
    found = device_hash.checksums([jnp.asarray(part) for part in codes])
    assert found == [checksum(part) for part in codes]
