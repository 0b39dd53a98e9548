"""Archived tensors decoded on the default device; dense weights never pass through the host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp

from jentropy import modes
from jentropy.codecs import context, on_device

from . import coder, device_hash
from .chunks import coded_chunks
from .tensor import CompressedTensor


def decodes(tensor: CompressedTensor) -> bool:
    """Whether this module can: codec `context` only, where JAX has the dtype."""
    header = tensor.header
    return (
        header.size > 0
        and header.coding.codec == context.NAME
        and jax.dtypes.canonicalize_dtype(tensor.dtype) == tensor.dtype
    )


def decompress(tensors: Sequence[CompressedTensor], names: Sequence[str]) -> Iterator[jax.Array]:
    """Tensors on the default device, in order; chunks of many decode together.

    Payloads and codes are held to their checksums, those of codes on the device.

    Raises:
      ChecksumError, CorruptError: damaged data.
    """
    items = (
        item
        for tensor, name in zip(tensors, names, strict=True)
        for item in coded_chunks(name, tensor)
    )
    decoded = (
        part
        for batch, parts in coder.decode_batches(items, _decode)
        for part in _checked(batch, parts)
    )
    for tensor in tensors:
        parts = [next(decoded) for _ in tensor.header.chunks]
        yield _join(parts, shape=tensor.shape, dtype=tensor.header.dtype)


def _decode(items: Sequence[coder.Coded]) -> list[jax.Array]:
    """Codes of chunks, on the device."""
    return on_device.decode([item.payload for item in items], [item.span for item in items])


def _checked(items: Sequence[coder.Coded], parts: Sequence[jax.Array]) -> Sequence[jax.Array]:
    """The same codes; raises ChecksumError unless they are those that were stored."""
    for item, found in zip(items, device_hash.checksums(parts), strict=True):
        if error := coder.hash_error(item, "codes", item.chunk.codes_hash, found):
            raise error
    return parts


@modes.detached
@partial(jax.jit, static_argnames=("shape", "dtype"))
def _join(parts: list[jax.Array], *, shape: tuple[int, ...], dtype: str) -> jax.Array:
    """A tensor of the codes of its chunks."""
    codes = jnp.concatenate(parts).reshape(shape)
    return jax.lax.bitcast_convert_type(codes, jnp.dtype(dtype))
