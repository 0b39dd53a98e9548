"""Codec `context` decoded on the default device: what is coded goes up, codes stay there.

The host cuts payloads up and no more. The device makes the contexts of every symbol from the
classes of rows and columns, decodes the lanes of all chunks in one loop (`rans`), and puts raw bits
and escapes to the symbols. A program is compiled for each shape of a chunk and each size of a call.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32, UInt8, UInt16, UInt32

from jentropy import modes

from . import calls, lanes, rans, rawbits
from .coding import Span
from .context import Decoding
from .context_head import ESCAPE

RUN = 1024  # flags that are counted at a time
MOST_TABLES = 255  # of a call: their ids are bytes, and one is for places without a symbol


@modes.detached
def decode(payloads: Sequence[np.ndarray], spans: Sequence[Span]) -> list[jax.Array]:
    """Codes of each payload, uint16[size] on the default device.

    Args:
      payloads: uint8[bytes] each, of codec `context`.
      spans: of each payload.

    Raises:
      CorruptError: a payload of the wrong length, or one that does not decode.

    Example:
      >>> import jentropy
      >>> from jentropy.containers.chunks import coded_chunks
      >>> values = jax.random.normal(jax.random.key(0), (99, 99)).astype(jnp.bfloat16)
      >>> (item,) = coded_chunks("w", jentropy.compress(values))
      >>> item.span.coding.codec
      'context'
      >>> (codes,) = decode([item.payload], [item.span])
      >>> bool((codes == values.view(jnp.uint16).reshape(-1)).all())
      True
    """
    jobs = [Decoding(payload, span) for payload, span in zip(payloads, spans, strict=True)]
    codes: dict[int, jax.Array] = {}
    checks = []
    for call in calls.calls_of(jobs, calls.DEVICE_LANES, MOST_TABLES):
        decoded, check = _decode_call(call)
        codes.update(zip(call.places, decoded, strict=True))
        checks.append(check)
    for ended, escapes in jax.device_get(checks):  # after the last call: nothing waits before
        lanes.expect_sound(bool(ended))
        for marked, job_escapes in escapes:
            lanes.expect_escapes(int(marked), int(job_escapes))
    return [codes[i] for i in range(len(jobs))]


def _decode_call(call: calls.Call) -> tuple[list[jax.Array], tuple[jax.Array, list]]:
    """Codes, and whether all lanes ended well and how many escapes each job marks and has."""
    for job in call.jobs:
        job.parse()
    streams, ends = call.streams()
    table_ids = jnp.full((call.steps, call.lanes), call.idle_table, jnp.uint8)
    contexts = []
    for job, columns, base in zip(call.jobs, call.columns, call.bases, strict=True):
        rows, all_columns, skip = job.head.classes.around(job.span)
        contexts.append(contexts_of(rows, all_columns, np.int32(skip), size=job.size))
        mask, lane = job.head.table_mask, np.int32(columns.start)
        table_ids = lay(table_ids, contexts[-1], mask, np.uint8(base), lane)
    symbols, final, reached = rans.decode(*streams, table_ids)
    codes, escapes = [], []
    for job, job_contexts, columns in zip(call.jobs, contexts, call.columns, strict=True):
        room = 1 << job.escaped.size.bit_length()  # few sizes, so that few programs are compiled
        finished, marked = codes_of(
            symbols,
            final,
            job_contexts,
            [np.ascontiguousarray(plane) for plane in job.planes],
            np.pad(job.escaped, (0, room - job.escaped.size)),
            np.uint16(job.head.first),
            np.int32(columns.start),
            bits=job.head.raw_bits,
        )
        codes.append(finished)
        escapes.append((marked, np.int32(job.escaped.size)))
    return codes, (ended_well(final, reached, ends), escapes)


@partial(jax.jit, static_argnames="size")
def contexts_of(
    rows: UInt8[Array, " rows"],
    columns: UInt8[Array, " columns"],
    skip: Int32[Array, ""],
    *,
    size: int,
) -> UInt8[Array, " {size}"]:
    """Contexts of `size` codes that begin `skip` codes into the first of these rows."""
    both = (rows[:, None] + columns[None]).reshape(-1)
    return jax.lax.dynamic_slice(both, (skip,), (size,))


@partial(jax.jit, donate_argnames="table_ids")
def lay(
    table_ids: UInt8[Array, "steps lanes"],
    contexts: UInt8[Array, " size"],
    mask: UInt8[Array, ""],
    base: UInt8[Array, ""],
    lane: Int32[Array, ""],
) -> UInt8[Array, "steps lanes"]:
    """Puts the tables of a chunk's symbols into a call, from a lane on."""
    steps, size = table_ids.shape[0], contexts.shape[0]
    width = calls.lane_count(size)
    old = jax.lax.dynamic_slice(table_ids, (0, lane), (steps, width)).reshape(-1)
    new = jnp.concatenate([(contexts & mask) + base, old[size:]]).reshape(steps, width)
    return jax.lax.dynamic_update_slice(table_ids, new, (0, lane))


@partial(jax.jit, static_argnames="bits")
def codes_of(
    symbols: UInt8[Array, "steps lanes"],
    final: UInt32[Array, " lanes"],
    contexts: UInt8[Array, " size"],
    planes: list[UInt8[Array, " _"]],
    escaped: UInt16[Array, " room"],
    first: UInt16[Array, ""],
    lane: Int32[Array, ""],
    *,
    bits: int,
) -> tuple[UInt16[Array, " size"], Int32[Array, ""]]:
    """Codes of the chunk whose lanes begin at `lane`, and how many of them are escapes.

    Args:
      final: states of the lanes at the end, which carry the first bytes of the first plane.
      planes: raw bits, without those bytes.
      escaped: tops in order, and whatever fills them up to 2^k.
      first: of the head.
    """
    size = contexts.shape[0]
    width = calls.lane_count(size)
    chunk = jax.lax.dynamic_slice(symbols, (0, lane), (symbols.shape[0], width))
    chunk = chunk.reshape(-1)[:size]
    carried = jax.lax.dynamic_slice(final, (lane,), (width,))
    low = jnp.stack([carried & 0xFF, carried >> 8 & 0xFF], axis=-1).astype(jnp.uint8).reshape(-1)
    fill = (0, -size % rawbits.BLOCK)
    completed = [jnp.concatenate([low, planes[0]]), *planes[1:]]
    chunk_filled, contexts_filled = jnp.pad(chunk, fill), jnp.pad(contexts, fill)
    codes = rawbits.merge(chunk_filled, contexts_filled, completed, first, bits=bits)[:size]
    missed = chunk == ESCAPE
    place = _running_count(missed)
    top = escaped[jnp.clip(place - 1, 0, escaped.shape[0] - 1)]
    codes = jnp.where(missed, rawbits.with_top(codes, top, bits), codes)
    return codes, place[-1]


def _running_count(flags: Bool[Array, " size"]) -> Int32[Array, " size"]:
    """How many are set up to each one, in two levels: one takes a TPU's compiler half a minute."""
    size = flags.shape[0]
    padded = jnp.pad(flags, (0, -size % RUN)).astype(jnp.int32).reshape(-1, RUN)
    inside = jnp.cumsum(padded, axis=1)
    before = jnp.cumsum(inside[:, -1]) - inside[:, -1]
    return (inside + before[:, None]).reshape(-1)[:size]


@jax.jit
def ended_well(
    final: UInt32[Array, " lanes"], reached: UInt32[Array, " lanes"], ends: UInt32[Array, " lanes"]
) -> Bool[Array, ""]:
    """Whether all lanes ended in an initial state, their words used up."""
    return ((final >> 16 == 1) & (reached == ends)).all()
