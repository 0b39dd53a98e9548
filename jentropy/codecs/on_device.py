"""Codec `context` decoded on the default device: what is coded goes up, codes stay there.

The host cuts payloads up and no more. The device makes the contexts of every symbol from the
classes of rows and columns, decodes the lanes of all chunks in one loop (`rans`), and puts raw bits
and escapes to the symbols. A program is compiled for each shape of a chunk and each size of a call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32, UInt8, UInt16, UInt32

from jentropy import modes
from jentropy.errors import CorruptError

from . import lanes, rans, rawbits
from .coding import Span
from .context import ESCAPE, Parsed, Plan, parse, plan_of
from .lanes import Gathered, Grid
from .tables import Tables

RUN = 1024  # flags that are counted at a time
MOST_TABLES = 255  # of a call: their numbers are bytes, and one is for places without a symbol


@dataclass(frozen=True, eq=False, slots=True)
class Piece:
    """A chunk on its way."""

    payload: np.ndarray
    span: Span
    plan: Plan

    @property
    def size(self) -> int:
        """Its symbols."""
        return self.span.size

    @property
    def tables(self) -> Tables:
        """Of its symbols."""
        return self.plan.tables

    def classes(self) -> tuple[np.ndarray, np.ndarray, np.int32]:
        """Classes of the rows that it lies in and of all columns, and what the first row lacks."""
        start, width = self.span.start, self.span.layout.columns
        low, high = start // width, -(-(start + self.size) // width)
        rows, columns = self.plan.rows, self.plan.columns
        return (
            np.zeros(high - low, np.uint8) if rows is None else rows[low:high],
            np.zeros(width, np.uint8) if columns is None else columns,
            np.int32(start - low * width),
        )


@modes.detached
def decode(payloads: Sequence[np.ndarray], spans: Sequence[Span]) -> list[jax.Array]:
    """Codes of each payload, uint16[size] on the default device.

    Raises:
      CorruptError: a payload of the wrong length, or one that does not decode.
    """
    pieces = [
        Piece(payload, span, plan_of(span)) for payload, span in zip(payloads, spans, strict=True)
    ]
    codes: list[jax.Array] = [jnp.empty(0)] * len(pieces)
    checks = []
    for call in lanes.calls_of(pieces, lanes.DEVICE_LANES, MOST_TABLES):
        own, sound = _decode_call([pieces[i] for i in call])
        checks.append(sound)
        for i, found in zip(call, own, strict=True):
            codes[i] = found
    for ended, escapes in jax.device_get(checks):  # after the last call: nothing waits before
        lanes.expect_sound(bool(ended))
        if not all(escapes):
            raise CorruptError("escapes of a chunk", expected="as many as are marked", found="not")
    return codes


def _decode_call(pieces: list[Piece]) -> tuple[list[jax.Array], tuple[jax.Array, list[jax.Array]]]:
    """Codes, and whether all lanes ended well and each chunk has its escapes."""
    grid = Grid.of(pieces)
    parsed = [parse(piece.payload, piece.size, piece.plan) for piece in pieces]
    gathered = Gathered.of(grid, [part.stream for part in parsed])
    numbers = jnp.full((grid.steps, grid.lanes), len(gathered.tables) - 1, jnp.uint8)
    contexts = []
    for piece, columns, base in zip(pieces, grid.columns, grid.bases, strict=True):
        contexts.append(contexts_of(*piece.classes(), size=piece.size))
        mask = np.uint8(piece.tables.count - 1)
        numbers = lay(numbers, contexts[-1], mask, np.uint8(base), np.int32(columns.start))
    symbols, final, reached = rans.decode(
        gathered.words, gathered.states, gathered.pointers, gathered.tables.reshape(-1), numbers
    )
    codes, escapes = [], []
    for piece, part, own, columns in zip(pieces, parsed, contexts, grid.columns, strict=True):
        found, sound = _finish(symbols, final, own, part, piece.plan, columns.start)
        codes.append(found)
        escapes.append(sound)
    return codes, (ended_well(final, reached, gathered.ends), escapes)


def _finish(
    symbols: jax.Array,
    final: jax.Array,
    contexts: jax.Array,
    part: Parsed,
    plan: Plan,
    lane: int,
) -> tuple[jax.Array, jax.Array]:
    room = 1 << part.escaped.size.bit_length()  # few sizes, so that few programs are compiled
    escaped = np.zeros(room, np.uint16)
    escaped[: part.escaped.size] = part.escaped
    return codes_of(
        symbols,
        final,
        contexts,
        [np.ascontiguousarray(plane) for plane in part.planes],
        escaped,
        np.int32(part.escaped.size),
        np.uint16(plan.first),
        np.int32(lane),
        bits=plan.raw_bits,
    )


@partial(jax.jit, static_argnames="size")
def contexts_of(
    rows: UInt8[Array, " rows"],
    columns: UInt8[Array, " columns"],
    skip: Int32[Array, ""],
    *,
    size: int,
) -> UInt8[Array, " size"]:
    """Contexts of `size` codes that begin `skip` codes into the first of these rows."""
    both = (rows[:, None] + columns).reshape(-1)
    return jax.lax.dynamic_slice(both, (skip,), (size,))


@partial(jax.jit, donate_argnames="numbers")
def lay(
    numbers: UInt8[Array, "steps lanes"],
    contexts: UInt8[Array, " size"],
    mask: UInt8[Array, ""],
    base: UInt8[Array, ""],
    lane: Int32[Array, ""],
) -> UInt8[Array, "steps lanes"]:
    """Puts the numbers of a chunk's tables into a call, from a lane on."""
    steps, size = numbers.shape[0], contexts.shape[0]
    width = lanes.lane_count(size)
    old = jax.lax.dynamic_slice(numbers, (0, lane), (steps, width)).reshape(-1)
    new = jnp.concatenate([(contexts & mask) + base, old[size:]]).reshape(steps, width)
    return jax.lax.dynamic_update_slice(numbers, new, (0, lane))


@partial(jax.jit, static_argnames="bits")
def codes_of(
    symbols: UInt8[Array, "steps lanes"],
    final: UInt32[Array, " lanes"],
    contexts: UInt8[Array, " size"],
    planes: list[UInt8[Array, " _"]],
    escaped: UInt16[Array, " room"],
    escapes: Int32[Array, ""],
    first: UInt16[Array, ""],
    lane: Int32[Array, ""],
    *,
    bits: int,
) -> tuple[UInt16[Array, " size"], Bool[Array, ""]]:
    """Codes of the chunk whose lanes begin at `lane`, and whether it has its escapes.

    Args:
      final: states of the lanes at the end, which carry the first bytes of the first plane.
      planes: raw bits, without those bytes.
      escaped: tops in order, and whatever fills them up to 2^k.
      escapes: how many there are.
      first: of the plan.
    """
    size = contexts.shape[0]
    width = lanes.lane_count(size)
    own = jax.lax.dynamic_slice(symbols, (0, lane), (symbols.shape[0], width))
    own = own.reshape(-1)[:size]
    carried = jax.lax.dynamic_slice(final, (lane,), (width,))
    low = jnp.stack([carried & 0xFF, carried >> 8 & 0xFF], axis=-1).astype(jnp.uint8).reshape(-1)
    fill = (0, -size % rawbits.BLOCK)
    whole = [jnp.concatenate([low, planes[0]]), *planes[1:]]
    codes = rawbits.merge(
        jnp.pad(own, fill),
        jnp.pad(contexts, fill),
        whole,
        first,
        bits=bits,
        signed=True,
        dtype="uint16",
    )[:size]
    missed = own == ESCAPE
    place = _running_count(missed)
    top = escaped[jnp.clip(place - 1, 0, escaped.shape[0] - 1)]
    codes = jnp.where(missed, rawbits.with_top(codes, top, bits), codes)
    return codes, place[-1] == escapes


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
