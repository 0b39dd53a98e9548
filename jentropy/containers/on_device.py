"""Archived tensors decoded on the default device; dense weights never pass through the host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp

from jentropy import modes
from jentropy.codecs import context, on_device

from . import coder
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

    Payloads are held to their checksums and lanes to their ends; codes are not hashed, since they
    do not come to the host.

    Raises:
      ChecksumError, CorruptError: damaged data.
    """
    items = (
        item
        for tensor, name in zip(tensors, names, strict=True)
        for item in coded_chunks(name, tensor)
    )
    decoded = (part for _, parts in coder.decode_batches(items, _decode) for part in parts)
    for tensor in tensors:
        parts = [next(decoded) for _ in tensor.header.chunks]
        yield _join(parts, shape=tensor.shape, dtype=tensor.header.dtype)


def _decode(items: Sequence[coder.Coded]) -> list[jax.Array]:
    """Codes of chunks, on the device."""
    return on_device.decode([item.payload for item in items], [item.span for item in items])


@modes.detached
@partial(jax.jit, static_argnames=("shape", "dtype"))
def _join(parts: list[jax.Array], *, shape: tuple[int, ...], dtype: str) -> jax.Array:
    """A tensor of the codes of its chunks."""
    codes = jnp.concatenate(parts).reshape(shape)
    return jax.lax.bitcast_convert_type(codes, jnp.dtype(dtype))
