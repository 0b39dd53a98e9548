"""Attention on TPU by JAX's splash kernel, of queries anywhere in a cache whose slots are in order.

The kernel visits parts of keys that some query sees, and asks of every query and key whether it
does. A query's number says so beside the place of the key:

    all before it    the place of its own key
    a window         that in the low 16 bits, and above them how many keys it sees up to there:
                     fewer than the window where the sequence has not so many
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jentropy import jax_internals

LANES = 128
PLACE_BITS = 16
LONGEST_WINDOW = 1 << 15  # slots where there is a window, so that both numbers fit an int32


@dataclass(frozen=True, slots=True)
class Sees:
    """Whether a query, told by its number, sees a key; equal ones are one program."""

    sliding: bool

    def __call__(self, number: jax.Array, place: jax.Array) -> jax.Array:
        if not self.sliding:
            return place <= number
        own = number & ((1 << PLACE_BITS) - 1)
        return (place <= own) & (place > own - (number >> PLACE_BITS))


def is_there() -> bool:
    """Whether the installed JAX has the kernel.

    Example:
      >>> is_there()
      True
    """
    return jax_internals.splash_attention() is not None


def splash(
    q: Float[Array, "batch kv_heads group time width"],
    k: Float[Array, "batch kv_heads slots width"],
    v: Float[Array, "batch kv_heads slots value_width"],
    positions: Int[Array, "*queries time"],
    slots: Int[Array, "*keys slots"],
    window: Int[Array, ""] | int | None,
    sinks: Float[Array, "kv_heads group"] | None,
    *,
    scale: float,
    soft_cap: float | None,
    interpret: bool = False,
) -> Float[Array, "batch kv_heads group time value_width"]:
    """As `attending.blockwise`; the queries are scaled before they are multiplied, and rounded.

    Args:
      slots: positions in order, one after the other.
    """
    attend = jax_internals.splash_attention()
    assert attend is not None
    batch, _, _, time, _ = q.shape
    size = part_of(time), part_of(k.shape[2])
    q = (q.astype(jnp.float32) * scale).astype(q.dtype).reshape(batch, -1, *q.shape[3:])
    q, k, v = (_filled(each, -2, one) for each, one in ((q, size[0]), (k, size[1]), (v, size[1])))
    own = positions - slots[..., :1]
    seen = own + 1 if window is None else jnp.minimum(window, positions + 1)
    numbers = own if window is None else own | (seen << PLACE_BITS)
    numbers, own, first = (_filled(each, -1, size[0]) for each in (numbers, own, own - seen + 1))
    run = partial(
        attend,
        keys=visited(first, own, size, k.shape[2]),
        sinks=None if sinks is None else sinks.reshape(-1),
        sees=Sees(window is not None),
        size=size,
        soft_cap=soft_cap,
        interpret=interpret,
    )
    mixed = jax.vmap(run)(q, k, v, jnp.broadcast_to(numbers, (batch, numbers.shape[-1])))
    return mixed[:, :, :time].reshape(batch, k.shape[1], -1, time, v.shape[-1])


def part_of(length: int) -> int:
    """The length of parts that splash goes by: the longest up to 512 that needs the least padding.

    Example:
      >>> [part_of(length) for length in (64, 640, 768, 8192)]
      [128, 128, 384, 512]
    """
    lanes = -(-length // LANES)
    return LANES * next(n for n in (4, 3, 2, 1) if lanes % n == 0)


def visited(
    first: Int[Array, "*rows queries"],
    last: Int[Array, "*rows queries"],
    size: tuple[int, int],
    slots: int,
) -> tuple[Int[Array, "parts key_parts"], Int[Array, "parts key_parts"]]:
    """Parts of keys that a part of queries sees, of any row.

    Args:
      first, last: places of the keys that each query sees.
      size: of a part of queries and of one of keys.
      slots: of all keys.

    Returns:
      Which part of keys is there at each step, and whether it is added: as long as it is not, that
      which comes next or was there last, and nothing is read.
    """
    parts = math.ceil(first.shape[-1] / size[0])
    low, high = (
        of(each.reshape(-1, parts, size[0]), axis=(0, 2))[:, None] // size[1]
        for each, of in ((first, jnp.min), (last, jnp.max))
    )
    order = jnp.arange(slots // size[1], dtype=jnp.int32)
    return jnp.clip(order, low, high), ((order >= low) & (order <= high)).astype(jnp.int32)


def _filled(array: jax.Array, axis: int, part: int) -> jax.Array:
    """An array with whole parts along an axis; queries that are added see what the last does."""
    missing = -array.shape[axis] % part
    if not missing:
        return array
    widths = [(0, missing if i == axis % array.ndim else 0) for i in range(array.ndim)]
    return jnp.pad(array, widths, mode="edge" if array.ndim < 4 else "constant")
