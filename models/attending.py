"""The sum over keys: softmax(q k^T) v, of grouped queries, as far as every query sees.

A query sees the keys of positions up to its own, and of a window no others. Scores and their
softmax are float32; weights are rounded to the values' dtype before they are multiplied.

Few scores are computed at once. Of many, chunks of queries go over blocks of keys with a running
maximum and sum, so that memory grows with the tokens and not with their square; a block that no
query of a chunk sees is passed over. A library's kernel does the same where it covers the case
(`attending_kernels`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jentropy.pallas_kernels.row_blocks import TILE

from .attending_kernels import Case, by_platform, dtypes_of, kernels_for
from .caches import visible
from .layers import soft_capped
from .placing import Lies, on_devices
from .sums import greatest, softmax, summed

PRECISION = jax.lax.Precision.HIGHEST  # attention in float32 means float32, on a GPU and TPU too
AT_ONCE = 1 << 22  # scores, 16 MiB of them: of more, those of blocks are faster on a CPU too
QUERIES, KEYS = 256, 512  # of a chunk and a block
LONG = 512  # queries of a chunk for which keys are made
UNSEEN = -1e30  # a score whose exponential is 0 beside any other's, and no infinity


Make = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


class Scoring(NamedTuple):
    """How scores are made of products; see `attend`."""

    scale: float
    soft_cap: float | None


def attend(
    q: Float[Array, "batch heads time width"],
    k: Float[Array, "batch kv_heads slots width"],
    v: Float[Array, "batch kv_heads slots value_width"],
    *,
    scale: float,
    positions: Int[Array, "*queries time"],
    slots: Int[Array, "*keys slots"],
    in_order: bool = False,
    window: Int[Array, ""] | int | None = None,
    soft_cap: float | None = None,
    sinks: Float[Array, " heads"] | None = None,
    lies: Lies | None = None,
) -> Float[Array, "batch heads time value_width"]:
    """Mixes the values of the keys that each query sees.

    Args:
      q: queries; heads i * heads / kv_heads and following share keys i.
      k: keys.
      v: values, which may be wider or narrower than keys.
      scale: of the products of queries and keys.
      positions: int32[time], or [batch, time], of the queries.
      slots: int32[slots], or [batch, slots]: positions of the keys; negative where there is none.
      in_order: whether the position of each slot is that of the slot before it and one.
      window: positions that a query sees, its own included; None: all before it.
      soft_cap: scores are soft_cap * tanh(score / soft_cap), as in Gemma 2.
      sinks: a score per head that takes its share of the softmax and adds nothing, as in gpt-oss.
      lies: how sequences and heads are split over a mesh; each device mixes its own.

    Returns:
      Sums in the dtype of `v`.

    Example:
      >>> k = v = jnp.eye(3)[None, None]
      >>> order = jnp.arange(3)
      >>> out = attend(jnp.ones((1, 2, 3, 3)), k, v, scale=1.0, positions=order, slots=order)
      >>> out[0, 0].tolist()[:2]
      [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]
    """
    batch, heads, time, width = q.shape
    grouped = q.reshape(batch, k.shape[1], -1, time, width)
    sinks = None if sinks is None else sinks.astype(jnp.float32).reshape(grouped.shape[1:3])
    arrays = grouped, k, v, positions, slots, window, sinks
    few = time == 1 or batch * heads * time * k.shape[2] <= AT_ONCE
    mix = partial(_mix, few=few, in_order=in_order, scoring=Scoring(scale, soft_cap))
    mixed = mix(*arrays) if lies is None else on_devices(lies, mix, *arrays)
    return mixed.reshape(batch, heads, time, v.shape[-1])


def _mix(
    q: Float[Array, "batch kv_heads group time width"],
    k: Float[Array, "batch kv_heads slots width"],
    v: Float[Array, "batch kv_heads slots value_width"],
    positions: Int[Array, "*queries time"],
    slots: Int[Array, "*keys slots"],
    window: Int[Array, ""] | int | None,
    sinks: Float[Array, "kv_heads group"] | None,
    *,
    few: bool,
    in_order: bool,
    scoring: Scoring,
) -> Float[Array, "batch kv_heads group time value_width"]:
    """The sum on one device, of few scores or of many."""
    arrays = q, k, v, positions, slots, window, sinks
    if few:
        return at_once(*arrays, scoring)
    case = Case(
        width=q.shape[-1],
        value_width=v.shape[-1],
        queries=q.shape[-2],
        slots=k.shape[2],
        batch=q.shape[0],
        in_order=in_order,
        windowed=window is not None,
        capped=scoring.soft_cap is not None,
        sinks=sinks is not None,
        dtypes=dtypes_of(q, k, v),
    )
    kernels = {
        platform: partial(mix, **scoring._asdict()) for platform, mix in kernels_for(case).items()
    }
    return by_platform(kernels, partial(blockwise, scoring=scoring), *arrays)


def at_once(
    q: Float[Array, "batch kv_heads group time width"],
    k: Float[Array, "batch kv_heads slots width"],
    v: Float[Array, "batch kv_heads slots value_width"],
    positions: Int[Array, "*queries time"],
    slots: Int[Array, "*keys slots"],
    window: Int[Array, ""] | int | None,
    sinks: Float[Array, "kv_heads group"] | None,
    scoring: Scoring,
) -> Float[Array, "batch kv_heads group time value_width"]:
    """The sum with all scores in memory."""
    seen = visible(positions, slots, window)
    scores = jnp.where(seen, _scores(q, k, scoring), -jnp.inf)
    if sinks is not None:
        sink = jnp.broadcast_to(sinks[:, :, None, None], (*scores.shape[:-1], 1))
        scores = jnp.concatenate((scores, sink), axis=-1)
    weights = softmax(scores)[..., : k.shape[2]].astype(v.dtype)
    return jnp.einsum("bkgts,bksd->bkgtd", weights, v, precision=PRECISION)


def blockwise(
    q: Float[Array, "batch kv_heads group time width"],
    k: Float[Array, "batch key_heads slots key_width"],
    v: Float[Array, "batch kv_heads slots value_width"] | None,
    positions: Int[Array, "*queries time"],
    slots: Int[Array, "*keys slots"],
    window: Int[Array, ""] | int | None,
    sinks: Float[Array, "kv_heads group"] | None,
    scoring: Scoring,
    make: Make | None = None,
) -> Float[Array, "batch kv_heads group time value_width"]:
    """The sum with the scores of one chunk of queries and one block of keys in memory.

    Derivatives compute them again.

    Args:
      make: gives keys and values of a block of `k`; then `v` is None. They are made for every chunk
        of queries, which are longer for it.

    References:
      Rabe and Staats, arXiv 2112.05682; Milakov and Gimelshein, arXiv 1805.02867.
    """
    time = q.shape[-2]
    queries, keys = min(QUERIES if make is None else LONG, time), min(KEYS, k.shape[2])
    values = None if v is None else _cut(v, 2, keys, 0)
    blocks = _cut(k, 2, keys, 0), values, _cut(slots, -1, keys, -1)
    chunk = jax.checkpoint(
        partial(_chunk, blocks=blocks, window=window, sinks=sinks, scoring=scoring, make=make)
    )
    if queries == time:
        return chunk((q, positions))
    mixed = jax.lax.map(chunk, (_cut(q, -2, queries, 0), _cut(positions, -1, queries, -1)))
    whole = jnp.moveaxis(mixed, 0, -3)
    return whole.reshape(*whole.shape[:3], -1, whole.shape[-1])[:, :, :, :time]


def _chunk(
    one: tuple[jax.Array, jax.Array],
    *,
    blocks: tuple[jax.Array, jax.Array | None, jax.Array],
    window: Int[Array, ""] | int | None,
    sinks: Float[Array, "kv_heads group"] | None,
    scoring: Scoring,
    make: Make | None,
) -> jax.Array:
    """The sum of a chunk of queries over all blocks of keys."""
    q, positions = one
    batch, *heads, time, _ = q.shape
    values: Any = jax.eval_shape(make, blocks[0][0])[1] if make else blocks[1]
    if sinks is None:
        highest = jnp.full((batch, *heads, time), UNSEEN)
        total = jnp.zeros_like(highest)
    else:
        highest = jnp.broadcast_to(sinks[:, :, None], (batch, *heads, time))
        total = jnp.exp(highest - jax.lax.stop_gradient(highest))  # 1, and its derivative
    mixed = jnp.zeros((*total.shape, values.shape[-1]))

    @jax.checkpoint
    def add(carry: tuple, k: jax.Array, v: Any, seen: jax.Array) -> tuple:
        highest, total, mixed = carry
        k, v = make(k) if make else (k, v)
        scores = jnp.where(seen, _scores(q, k, scoring), UNSEEN)
        higher = jnp.maximum(jax.lax.stop_gradient(highest), greatest(scores))
        weights = jnp.where(seen, jnp.exp(scores - higher[..., None]), 0)
        kept = jnp.exp(jax.lax.stop_gradient(highest) - higher)
        more = jnp.einsum(
            "bkgts,bksd->bkgtd",
            weights.astype(v.dtype),
            v,
            precision=PRECISION,
            preferred_element_type=jnp.float32,
        )
        return higher, total * kept + summed(weights), mixed * kept[..., None] + more

    def step(carry: tuple, block: tuple) -> tuple[tuple, None]:
        k, v, slots = block
        seen = visible(positions, slots, window)
        return jax.lax.cond(seen.any(), add, lambda carry, *_: carry, carry, k, v, seen), None

    (_, total, mixed), _ = jax.lax.scan(step, (highest, total, mixed), blocks)
    mixed = mixed / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)[..., None]
    return mixed.astype(values.dtype)


def _scores(q: jax.Array, k: jax.Array, scoring: Scoring) -> Float[Array, "b k g t s"]:
    """Scores of every query and key.

    Keys are filled up to whole tiles and a lone query to two, and heads of all sequences lie along
    one axis: else XLA for CPU takes another product by how many heads and sequences there are,
    and over a mesh a device has some of them.
    """
    batch, heads, group, time, width = q.shape
    rows = _filled(q.reshape(batch * heads, group * time, width), -2, 2 if group * time == 1 else 1)
    keys = _filled(k, -2, TILE).reshape(batch * heads, -1, width)
    products = jnp.einsum(
        "ntd,nsd->nts",
        rows,
        keys,
        precision=PRECISION,
        preferred_element_type=jnp.float32,
    )[:, : group * time, : k.shape[2]]
    products = products.reshape(batch, heads, group, time, -1)
    return soft_capped(scoring.scale * products, scoring.soft_cap)


def _filled(array: jax.Array, axis: int, step: int) -> jax.Array:
    """The array, an axis filled up with zeros to a multiple of `step`."""
    missing = -array.shape[axis] % step
    widths = [(0, missing if i == axis % array.ndim else 0) for i in range(array.ndim)]
    return jnp.pad(array, widths) if missing else array


def _cut(array: jax.Array, axis: int, size: int, fill: int) -> jax.Array:
    """Parts of an axis as a new first axis, the last one filled up."""
    axis %= array.ndim
    parts = -(-array.shape[axis] // size)
    missing = parts * size - array.shape[axis]
    if missing:
        widths = [(0, missing if i == axis else 0) for i in range(array.ndim)]
        array = jnp.pad(array, widths, constant_values=fill)
    shape = (*array.shape[:axis], parts, size, *array.shape[axis + 1 :])
    return jnp.moveaxis(array.reshape(shape), axis, 0)
