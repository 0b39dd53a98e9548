"""Codec `context`: exponent and two mantissa bits of BF16 and FP16, by scale of row and column.

A code's top is its exponent and two leading mantissa bits; what is left, r raw bits (of BF16 sign
and five mantissa bits, r = 6; of FP16 r = 9), is stored (`rawbits`). A top is coded as symbol
top - first - shift * context, or as an escape. Context = class of the row + class of the column, a
class being a step of a quarter octave of mean magnitude; two mantissa bits make four tops an
octave, so that with shift 1 all contexts have nearly the same table.

Head, little-endian:

    u1 flags       1: there are escapes
    u1 shift, u1 contexts, u1 count - 1, u2 first, u2 base of escapes
    levels         of `contexts` tables of count symbols, and one for escapes (`tables`)
    classes        of rows, then of columns: u1 number of kinds, u1 each kind, the commonest first;
                   if there are several, each row's (column's) place among them in unary

A chunk of n codes in L = ceil(n / 8192) lanes:

    states, counts (`lanes.Stream`)
    escapes        with flag 1: u4 number; u1 each: 0 is top 0, 1 to 254 top base + that, 255 a top
                   given in full, u2 each, after them
    words          u2, lane after lane
    raw planes     lowest bits first; the first 2 L bytes of the first plane are not there: bytes
                   2 l and 2 l + 1 are the low 16 bits of lane l's initial state
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32, UInt16

from jentropy.errors import CorruptError
from jentropy.formats import BF16, FP16, ElementFormat

from . import bits, lanes, rawbits, tables
from .coding import Coding, Layout
from .lanes import Decoding, Encoding, Stream, Symbols
from .rans import SLOTS
from .tables import Tables

NAME = "context"
MANTISSA = 2  # leading mantissa bits of a top; a third costs more in tables than it saves
ELEMENTS = (BF16, FP16)
CONTEXTS = 15  # of a tensor at the most: with one more table their slots have 16-bit indices
ROW_CLASSES, COLUMN_CLASSES = 11, 5
SAMPLE = 1 << 17  # codes that an encoder looks at; of large tensors a 64th
SMALL = 1 << 14  # codes; smaller tensors are not worth classes
ESCAPE = 255  # what a decoder's table shows for an escape
IN_FULL = 255  # an escape's byte
_SUM_SCALE = 1023  # of a magnitude in the sums that classes are made of


def raw_bits_of(element: ElementFormat) -> int:
    """Raw bits of a code: sign and the mantissa bits that are not in the top."""
    return 1 + element.field_bits("mantissa") - MANTISSA


@dataclass(frozen=True, eq=False)
class Plan:
    """A tensor's coding.

    Attributes:
      first, count: the window of tops that have symbols, in context 0.
      shift: how far the window moves from a context to the next.
      levels: int64[contexts, count or count + 1], the last for escapes.
      rows, columns: uint8 class of each; None: all are 0.
      base: of escapes.
    """

    element: ElementFormat
    first: int
    count: int
    shift: int
    levels: np.ndarray
    rows: np.ndarray | None
    columns: np.ndarray | None
    base: int

    @property
    def raw_bits(self) -> int:
        """Raw bits of a code."""
        return raw_bits_of(self.element)

    @property
    def escapes(self) -> bool:
        """Whether there are escapes."""
        return self.levels.shape[1] > self.count

    @cached_property
    def tables(self) -> Tables:
        """The contexts' tables; a decoder is shown top - first."""
        frequencies = tables.frequencies_of(self.levels)
        shown = np.arange(frequencies.shape[1]) + self.shift * np.arange(len(frequencies))[:, None]
        if self.escapes:
            shown[:, self.count] = ESCAPE
        return Tables(frequencies, shown)

    @cached_property
    def encode_rows(self) -> np.ndarray:
        """What an encoder looks up."""
        return self.tables.encode_rows()

    def contexts(self, start: int, size: int, columns: int) -> np.ndarray:
        """Contexts of a chunk's codes. uint8[size]."""
        low, high = start // columns, -(-(start + size) // columns)
        both = np.zeros((high - low, columns), np.uint8)
        if self.rows is not None:
            both += self.rows[low:high, None]
        if self.columns is not None:
            both += self.columns
        return both.reshape(-1)[start - low * columns :][:size]


# The head.


def write_head(plan: Plan) -> bytes:
    """The head of a plan."""
    numbers = bytes([plan.escapes, plan.shift, len(plan.levels), plan.count - 1])
    numbers += plan.first.to_bytes(2, "little") + plan.base.to_bytes(2, "little")
    classes = b"".join(_write_classes(part) for part in (plan.rows, plan.columns))
    return numbers + tables.write_levels(plan.levels) + classes


def _write_classes(classes: np.ndarray | None) -> bytes:
    if classes is None:
        return bytes([1, 0])
    counts = np.bincount(classes)
    kinds = np.argsort(-counts, kind="stable")
    kinds = kinds[counts[kinds] > 0]
    place = np.zeros(counts.size, np.int64)
    place[kinds] = np.arange(kinds.size)
    head = bytes([kinds.size, *kinds.tolist()])
    return head if kinds.size == 1 else head + bits.unary(place[classes])


@lru_cache(maxsize=256)  # with its tables a plan is some 200 KB
def read_head(head: bytes, element: ElementFormat, rows: int, columns: int) -> Plan:
    """The plan of a head, for a tensor of so many rows and columns.

    Raises:
      CorruptError: no head.
    """
    reader = bits.Reader(head, f"head of codec {NAME!r}")
    flags, shift, contexts, count = (reader.integer("u1") for _ in range(4))
    first, base = reader.integer("<u2"), reader.integer("<u2")
    count += 1
    width = count + (flags & 1)
    shown = count + shift * (contexts - 1)
    if flags > 1 or not 1 <= contexts <= CONTEXTS or width > 256 or shown > ESCAPE:
        raise CorruptError(
            f"head of codec {NAME!r}",
            expected=f"flags 0 or 1, up to {CONTEXTS} contexts, tops within {ESCAPE}",
            found=f"{flags}, {contexts}, {shown}",
        )
    levels = tables.read_levels(reader, contexts, width)
    plan = Plan(
        element,
        first,
        count,
        shift,
        levels,
        _read_classes(reader, rows),
        _read_classes(reader, columns),
        base,
    )
    reader.end()
    largest = sum(
        int(part.max(initial=0)) for part in (plan.rows, plan.columns) if part is not None
    )
    if largest >= contexts:
        raise CorruptError(
            f"classes of codec {NAME!r}", expected=f"sums below {contexts}", found=largest
        )
    return plan


def _read_classes(reader: bits.Reader, count: int) -> np.ndarray | None:
    kinds = reader.array("u1", reader.integer("u1"))
    if kinds.size == 0:
        raise CorruptError(f"classes of codec {NAME!r}", expected="a kind", found="none")
    if kinds.size == 1:
        return np.full(count, kinds[0], np.uint8) if kinds[0] else None
    places = reader.unary(count)
    if places.max(initial=0) >= kinds.size:
        raise CorruptError(
            f"classes of codec {NAME!r}",
            expected=f"places below {kinds.size}",
            found=int(places.max()),
        )
    return kinds[places]


# Chunks.


def encode(
    chunks: Sequence[np.ndarray],
    starts: Sequence[int],
    layouts: Sequence[Layout],
    codings: Sequence[Coding],
) -> list[np.ndarray]:
    """Payloads of chunks of codes, uint8 each."""
    return lanes.encode(
        [
            _encoding(chunk.reshape(-1), start, layout, _plan(layout, coding))
            for chunk, start, layout, coding in zip(chunks, starts, layouts, codings, strict=True)
        ]
    )


def _plan(layout: Layout, coding: Coding) -> Plan:
    if layout.element not in ELEMENTS:
        names = " or ".join(element.name for element in ELEMENTS)
        raise CorruptError(f"format of codec {NAME!r}", expected=names, found=layout.element.name)
    return read_head(coding.head, layout.element, layout.rows, layout.columns)


def _encoding(chunk: np.ndarray, start: int, layout: Layout, plan: Plan) -> Encoding:
    lane_count = lanes.lane_count(chunk.size)
    held: list[list[np.ndarray]] = []

    def prepare() -> Symbols:
        contexts = None
        if plan.tables.count > 1:
            contexts = plan.contexts(start, chunk.size, layout.columns)
        symbols, planes = _split(chunk, contexts, plan)
        escaped = chunk[:0]
        if plan.escapes:
            escaped = (chunk[symbols == plan.count] & np.uint16(0x7FFF)) >> np.uint16(
                plan.raw_bits - 1
            )
        low = planes[0][: 2 * lane_count].copy().view("<u2")
        held[:] = [_write_escapes(escaped, plan), [planes[0][2 * lane_count :], *planes[1:]]]
        return Symbols(symbols, contexts, low)

    def finish(stream: Stream) -> np.ndarray:
        escapes, planes = held
        words = stream.words.astype("<u2", copy=False)
        parts = [*stream.sections(), *escapes, words, *planes]
        return np.concatenate([part.view(np.uint8) for part in parts])

    return Encoding(chunk.size, plan.tables, plan.encode_rows, prepare, finish)


def _split(
    chunk: np.ndarray, contexts: np.ndarray | None, plan: Plan
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Symbols and raw planes of a chunk."""
    size = rawbits.padded(chunk.size)
    if contexts is None:
        contexts = np.zeros(1, np.uint8)
    if size != chunk.size:
        chunk_padded = np.pad(chunk, (0, size - chunk.size))
        if contexts.size > 1:
            contexts = np.pad(contexts, (0, size - chunk.size))
    else:
        chunk_padded = np.asarray(chunk)
    symbols, planes = rawbits.split(
        chunk_padded,
        contexts,
        np.uint16(plan.first),
        np.uint16(plan.shift),
        np.uint16(plan.count),
        bits=plan.raw_bits,
        signed=True,
    )
    widths = rawbits.widths(plan.raw_bits)
    return np.asarray(symbols)[: chunk.size], [
        np.asarray(plane)[: rawbits.plane_bytes(chunk.size, width)]
        for plane, width in zip(planes, widths, strict=True)
    ]


def _write_escapes(escaped: np.ndarray, plan: Plan) -> list[np.ndarray]:
    if not plan.escapes:
        return []
    beyond = escaped.astype(np.int64) - plan.base
    short = np.where((beyond > 0) & (beyond < IN_FULL), beyond, IN_FULL)
    short = np.where(escaped == 0, 0, short).astype(np.uint8)
    full = escaped[short == IN_FULL].astype("<u2")
    return [np.array([escaped.size], "<u4"), short, full]


def _read_escapes(reader: bits.Reader, plan: Plan) -> np.ndarray:
    if not plan.escapes:
        return np.zeros(0, np.uint16)
    short = reader.array("u1", reader.integer("<u4"))
    tops = np.where(short > 0, short + np.uint16(plan.base), 0).astype(np.uint16)
    full = short == IN_FULL
    tops[full] = reader.array("<u2", int(full.sum()))
    return tops


def decode(
    payloads: Sequence[np.ndarray],
    starts: Sequence[int],
    sizes: Sequence[int],
    layouts: Sequence[Layout],
    codings: Sequence[Coding],
) -> list[np.ndarray]:
    """Codes of each payload, uint16[size].

    Raises:
      CorruptError: a payload of the wrong length, or one that does not decode.
    """
    return lanes.decode(
        [
            _decoding(payload, start, size, layout, _plan(layout, coding))
            for payload, start, size, layout, coding in zip(
                payloads, starts, sizes, layouts, codings, strict=True
            )
        ]
    )


def _decoding(payload: np.ndarray, start: int, size: int, layout: Layout, plan: Plan) -> Decoding:
    reader = bits.Reader(payload, "coded chunk")
    states, counts = lanes.read_sections(reader, size)
    escaped = _read_escapes(reader, plan)
    words = reader.array("<u2", int(counts.sum()))
    widths = rawbits.widths(plan.raw_bits)
    carried = 2 * states.size
    stored = [rawbits.plane_bytes(size, width) for width in widths]
    stored[0] -= carried
    rest = [reader.array("u1", n) for n in stored]
    reader.end()

    def finish(tops: np.ndarray, low: np.ndarray) -> np.ndarray:
        length = rawbits.padded(size)
        planes = [np.zeros(rawbits.plane_bytes(length, width), np.uint8) for width in widths]
        planes[0][:carried] = low.astype("<u2").view(np.uint8)
        planes[0][carried : carried + stored[0]] = rest[0]
        for plane, part in zip(planes[1:], rest[1:], strict=True):
            plane[: part.size] = part
        codes = np.asarray(
            rawbits.merge(
                tops if length == size else np.pad(tops, (0, length - size)),
                planes,
                np.uint16(plan.first),
                bits=plan.raw_bits,
                signed=True,
                dtype="uint16",
            )
        )[:size]
        if not plan.escapes:
            return codes
        missed = np.flatnonzero(tops == ESCAPE)
        if missed.size != escaped.size:
            raise CorruptError("escapes of a chunk", expected=missed.size, found=escaped.size)
        codes = codes.copy()
        kept = np.uint16(1 << 15 | (1 << (plan.raw_bits - 1)) - 1)
        tops_only = np.uint16(0x7FFF)
        codes[missed] = codes[missed] & kept | escaped << np.uint16(plan.raw_bits - 1) & tops_only
        return codes

    contexts = None
    if plan.tables.count > 1:
        contexts = lambda: plan.contexts(start, size, layout.columns)  # noqa: E731
    return Decoding(size, plan.tables, Stream(states, counts, words), contexts, finish)


def size_bound(size: int, layout: Layout) -> int:
    """Largest payload of a chunk, bytes: a lane emits at most a word a symbol."""
    widths = rawbits.widths(raw_bits_of(layout.element))
    planes = sum(rawbits.plane_bytes(size, width) for width in widths)
    return 8 + 6 * lanes.lane_count(size) + 5 * size + planes


# The encoder's choice. Integers throughout, so that every machine decides alike.


def choose(codes: np.ndarray, counts: np.ndarray, layout: Layout) -> tuple[int, Coding] | None:
    """The smallest coding of a tensor of codes and about how many bytes it takes.

    Args:
      codes: uint16 of the layout's shape; a memory map is read in part.
      counts: int64[2^16], how often each code occurs.
    """
    if layout.element not in ELEMENTS or codes.size == 0:
        return None
    matrix = codes.reshape(layout.rows, layout.columns)
    best, cost = min(_candidates(matrix, counts, layout.element), key=lambda item: item[1])
    return -(-cost // 8), Coding(codec=NAME, head=write_head(best))


def _places(count: int, stride: int) -> np.ndarray:
    """One place in every `stride`, at odds with any period that data may have."""
    starts = np.arange(0, count, stride)
    jitter = (np.arange(starts.size) * 40503 + 12345 >> 4) % stride
    return np.minimum(starts + jitter, count - 1)


def _candidates(
    codes: np.ndarray, counts: np.ndarray, element: ElementFormat
) -> Iterator[tuple[Plan, int]]:
    """Plans with no classes, with classes of rows, and of rows and columns; bits of each."""
    rows, columns = codes.shape
    stride = max(1, codes.size // max(SAMPLE, codes.size >> 6))
    across = min(stride, max(1, columns // 256))
    down = -(-stride // across)
    down_places, across_places = _places(rows, down), _places(columns, across)
    sample = np.asarray(codes[down_places])[:, across_places]
    row, column = np.zeros(rows, np.uint8), np.zeros(columns, np.uint8)
    if rows > 1 and columns > 1 and codes.size >= SMALL:
        by_row, by_column = _sums(codes, element)
        row, column = _classes(by_row, ROW_CLASSES), _classes(by_column, COLUMN_CLASSES)
    kinds = int(row.max()) + 1, int(column.max()) + 1
    tops = 1 << (16 - raw_bits_of(element))
    top = (sample & np.uint16(0x7FFF)) >> np.uint16(raw_bits_of(element) - 1)
    pair = row[down_places].astype(np.int32)[:, None] * kinds[1] + column[across_places]
    counted = np.bincount((pair * tops + top).reshape(-1), minlength=tops * kinds[0] * kinds[1])
    histogram = counted.reshape(*kinds, tops).astype(np.int64)
    exact = counts.reshape(2, tops, -1).sum(axis=(0, 2))
    yield _candidate(element, histogram.sum(axis=(0, 1), keepdims=True), None, None, exact)
    if kinds[0] > 1:
        yield _candidate(element, histogram.sum(axis=1, keepdims=True), row, None, exact)
    if kinds[1] > 1:
        yield _candidate(element, histogram, row if kinds[0] > 1 else None, column, exact)


def _sums(codes: np.ndarray, element: ElementFormat) -> tuple[np.ndarray, np.ndarray]:
    """Sums of magnitudes over each row and each column, about 32 a code. int64 each."""
    rows, columns = codes.shape
    sample = np.sort(codes.reshape(-1)[:: max(1, codes.size // 4096)] & np.uint16(0x7FFF))
    # The median's exponent, as that of a float32.
    assert element.bias is not None
    typical = (int(sample[sample.size // 2]) >> element.field_bits("mantissa")) - element.bias
    scale = np.float32(2.0) ** np.float32(min(127, 5 - typical))
    block = max(1, (1 << 18) // columns)
    by_row, by_column = np.empty(rows, np.int64), np.zeros(columns, np.int64)
    for at in range(0, rows, block):
        part = np.asarray(codes[at : at + block])
        inside = len(part)
        if inside < block and rows > block:  # one program for all blocks
            part = np.pad(part, ((0, block - inside), (0, 0)))
        down, across = _block_sums(part, scale, element=element)
        by_row[at : at + inside] = np.asarray(down)[:inside]
        by_column += np.asarray(across)
    return by_row, by_column


@partial(jax.jit, static_argnames="element")
def _block_sums(
    codes: UInt16[Array, "rows columns"], scale: Float32[Array, ""], *, element: ElementFormat
) -> tuple[Int32[Array, rows], Int32[Array, columns]]:
    """Sums of scaled magnitudes, cut to integers first: exact in any order."""
    assert element.bias is not None
    mantissa = element.field_bits("mantissa")
    finite = ((1 << element.field_bits("exponent")) - 1 << mantissa) - 1  # the largest
    magnitude = jnp.minimum(codes & 0x7FFF, finite).astype(jnp.uint32)
    # As if subnormals were normal: close enough, and no device flushes them.
    bits_ = (magnitude << (23 - mantissa)) + ((127 - element.bias) << 23)
    scaled = jax.lax.bitcast_convert_type(bits_, jnp.float32) * scale
    whole = jnp.minimum(scaled, np.float32(_SUM_SCALE)).astype(jnp.int32)
    return whole.sum(axis=1), whole.sum(axis=0)


def _classes(sums: np.ndarray, most: int) -> np.ndarray:
    """Quarter octaves of sums, the `most` most populous next to each other; others the nearest."""
    share = (sums << 20) // max(1, int(sums.max()) >> 6)  # of the largest, in 2^26 or a bit more
    share = np.maximum(share, 1) << 7
    level = np.searchsorted(tables.WEIGHTS[1::2], share, side="right")
    counts = np.bincount(level)
    low = 0
    if counts.size > most:
        inside = np.convolve(counts, np.ones(most, np.int64))[most - 1 :]
        low = int(np.argmax(inside))
    classes = np.clip(level - low, 0, min(most, counts.size) - 1)
    return (classes - classes.min()).astype(np.uint8)


def _candidate(
    element: ElementFormat,
    histogram: np.ndarray,
    rows: np.ndarray | None,
    columns: np.ndarray | None,
    exact: np.ndarray,
) -> tuple[Plan, int]:
    """A plan, and the bits that a tensor takes with it.

    Args:
      histogram: int64[row classes, column classes, tops] of a sample.
      exact: int64[tops] of the whole tensor: a sample may miss what lies at its period.
    """
    contexts = histogram.shape[0] + histogram.shape[1] - 1
    shift = 1 if contexts > 1 else 0
    tops = histogram.shape[2]
    moved = np.zeros((contexts, tops + CONTEXTS), np.int64)  # top t at t - shift * context + 15
    for i, row in enumerate(histogram):
        for j, counts in enumerate(row):
            begin = CONTEXTS - shift * (i + j)
            moved[i + j, begin : begin + tops] += counts
    low, high = _window(moved.sum(axis=0))
    low = max(low, CONTEXTS)
    high = min(max(high, low), low + ESCAPE - 1 - CONTEXTS)
    inside = moved[:, low : high + 1]
    outside = moved.sum(axis=1) - inside.sum(axis=1)
    counts = np.concatenate([inside, outside[:, None]], axis=1)
    # What was not seen in a context may come: eight symbols, spread as over all contexts.
    pooled = counts.sum(axis=0)
    spread = 64 * 8 * pooled // max(1, int(pooled.sum()))
    smoothed = counts * 64 + np.maximum(1, spread)
    first = low - CONTEXTS
    plan = Plan(
        element,
        first,
        high - low + 1,
        shift,
        tables.levels_of(smoothed),
        rows,
        columns,
        max(0, first - 200),
    )
    size = int(exact.sum())
    coded = _coded_bits(plan, moved, low, exact)
    head = 8 * len(write_head(plan))
    return plan, coded + plan.raw_bits * size + head + 24 * lanes.lane_count(size)


def _coded_bits(plan: Plan, moved: np.ndarray, low: int, exact: np.ndarray) -> int:
    """Bits of a tensor's tops and escapes.

    The sample says how tops and contexts go together; where it has more or less of a top than the
    tensor, the difference counts with the top's mean cost over the contexts.

    Args:
      moved: int64[contexts, tops + 15] of the sample, top t at t - shift * context + 15.
      low: where the window begins in it.
      exact: int64[tops] of the tensor.
    """
    costs = tables.costs(plan.tables.frequencies)
    place, window = np.arange(moved.shape[1]), slice(low, low + plan.count)
    size, sampled = int(exact.sum()), int(moved.sum())
    total, mean = 0, np.zeros(exact.size, np.int64)
    own = np.zeros(exact.size, np.int64)
    for context, (counts, cost) in enumerate(zip(moved, costs, strict=True)):
        top = place - CONTEXTS + plan.shift * context
        short = (top == 0) | (top > plan.base) & (top < plan.base + IN_FULL)
        of_place = cost[-1] + (np.where(short, 8, 24) << tables.COST_BITS)
        of_place[window] = cost[: plan.count]
        total += int((counts * of_place).sum())
        inside = (top >= 0) & (top < exact.size)
        mean[top[inside]] += of_place[inside] * (int(counts.sum()) << 10) // sampled
        own[top[inside]] += counts[inside]
    average = total * size // sampled
    excess = sum(
        (int(all_) * sampled - int(some) * size) * int(cost)
        for all_, some, cost in zip(exact, own, mean >> 10, strict=True)
    )
    return max(0, average + excess // sampled) >> tables.COST_BITS


def _window(histogram: np.ndarray) -> tuple[int, int]:
    """First and last top worth a symbol of their own: at least a quarter of a slot."""
    seen = np.flatnonzero(histogram * SLOTS * 4 >= histogram.sum())
    return int(seen[0]), int(seen[-1])
