"""Archived tensors decoded on the default device; dense weights never pass through the host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp

from jentropy import codecs, modes
from jentropy.codecs import context, cores, on_device
from jentropy.errors import CorruptError

from . import coder
from .pieces import coded_chunks
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
    """Tensors on the default device, in order, as many at a time as are worth a call.

    Payloads are held to their checksums and lanes to their ends; codes are not hashed, since they
    do not come to the host.

    Raises:
      ChecksumError, CorruptError: damaged data.
    """
    batch: list[tuple[CompressedTensor, list[coder.Coded]]] = []
    held = 0
    for tensor, name in zip(tensors, names, strict=True):
        batch.append((tensor, list(coded_chunks(name, tensor))))
        held += tensor.header.size
        if held >= codecs.batch_symbols():
            yield from _decode_batch(batch)
            batch, held = [], 0
    yield from _decode_batch(batch)


def _decode_batch(
    batch: list[tuple[CompressedTensor, list[coder.Coded]]],
) -> Iterator[jax.Array]:
    items = [item for _, own in batch for item in own]
    cores.each(coder.check_payload, items)
    try:
        codes = iter(
            on_device.decode([item.payload for item in items], [item.span for item in items])
        )
    except CorruptError as error:
        if len(batch) > 1:  # find the one that it is about
            for one in batch:
                yield from _decode_batch([one])
            return
        raise error.at(file=items[0].file, tensor=items[0].name) from error
    for tensor, own in batch:
        yield _join([next(codes) for _ in own], shape=tensor.shape, dtype=tensor.header.dtype)


@modes.detached
@partial(jax.jit, static_argnames=("shape", "dtype"))
def _join(parts: list[jax.Array], *, shape: tuple[int, ...], dtype: str) -> jax.Array:
    """A tensor of the codes of its chunks."""
    codes = jnp.concatenate(parts).reshape(shape)
    return jax.lax.bitcast_convert_type(codes, jnp.dtype(dtype))
