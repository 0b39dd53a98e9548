"""Frequency tables: integers that every machine makes alike, coded compactly.

A table gives `count` symbols frequencies that sum to 4096. It is stored as *levels*, eighths of an
octave: level 0 is frequency 0, level q the weight floor(2^(20 + (q - 1) / 8)), and the weights are
scaled to 4096 (`normalize`). Levels are coded as differences d, along the symbols from 32 on in the
first table and from the table before in all others, folded to 2 d or -2 d - 1:

    u1 k | unary codes of folded >> k | the low k bits of each, lowest first
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jentropy.errors import CorruptError

from . import bits
from .rans import PRECISION, SLOTS

BYTE = 256  # values
LEVELS = 104  # the largest weight is then about that of 4096 slots
FIRST_LEVEL = 32
_UNIT_BITS = 20  # level 1 is 2^20
MAX_RICE = 20
RICES = 6  # that an encoder tries


# Of each level; floor(2^(20 + i / 8)) exactly, an eighth root being three square roots.
WEIGHTS = np.array(
    [0, *(math.isqrt(math.isqrt(math.isqrt(1 << 8 * _UNIT_BITS + i))) for i in range(LEVELS))],
    np.int64,
)
_BOUNDS = (WEIGHTS[1:98] + WEIGHTS[2:99]) // 2  # between levels that a share of 4096 slots has
# Cost of a symbol of frequency f in 1/65536 bit; integers, so that every machine decides alike.
COST_BITS = 16
_COST = np.array(
    [0, *(round(math.log2(SLOTS / f) * (1 << COST_BITS)) for f in range(1, SLOTS + 1))]
)
_SLOT = np.arange(SLOTS, dtype=np.uint32)
IDLE = _SLOT + np.uint32((SLOTS - 1) << PRECISION)  # a decoder's table that leaves states alone


@dataclass(frozen=True, eq=False)
class Tables:
    """The tables of a stream, one per context.

    Attributes:
      frequencies: int64[contexts, symbols], rows sum to 4096.
      shown: int64[symbols], the byte that each symbol is to an encoder and a decoder. Bytes that no
        symbol in use is code as the last one, the escape.
    """

    frequencies: np.ndarray
    shown: np.ndarray

    @property
    def count(self) -> int:
        """Number of tables."""
        return len(self.frequencies)

    @cached_property
    def starts(self) -> np.ndarray:
        """Cumulative frequencies below each symbol."""
        return np.cumsum(self.frequencies, axis=1) - self.frequencies

    @cached_property
    def symbols(self) -> np.ndarray:
        """The symbol that codes each byte, int64[256]."""
        symbols = np.full(BYTE, self.shown.size - 1)
        used = np.flatnonzero(self.frequencies.any(axis=0))
        symbols[self.shown[used]] = used
        return symbols

    @cached_property
    def encode_rows(self) -> np.ndarray:
        """uint32[contexts, 256], what `rans.encode` looks up."""
        return (self.frequencies << 16 | self.starts).astype(np.uint32)[:, self.symbols]

    @cached_property
    def decode_rows(self) -> np.ndarray:
        """uint32[contexts, 4096], what `rans.decode` looks up."""
        entries = (self.shown << 24) + ((self.frequencies - 1) << PRECISION) - self.starts
        repeated = np.repeat(entries.astype(np.uint32).reshape(-1), self.frequencies.reshape(-1))
        return repeated.reshape(-1, SLOTS) + _SLOT


def normalize(weights: np.ndarray) -> np.ndarray:
    """Frequencies that sum to 4096, at least 1 for every weight that is not 0.

    Args:
      weights: int64[..., symbols], below 2^45, no row all zero, of at most 2^12 symbols.

    Returns:
      int64[..., symbols].
    """
    rows = weights.reshape(-1, weights.shape[-1])
    total = rows.sum(axis=-1, keepdims=True)
    scaled = rows * SLOTS
    frequency = np.where(rows > 0, np.maximum(1, scaled // total), 0)
    surplus = frequency.sum(axis=-1) - SLOTS
    # One more to the largest remainders; those raised to 1 come last.
    remainder = np.where(scaled >= total, scaled % total, -1)
    frequency += _first(remainder, -surplus)
    while (over := np.flatnonzero(surplus > 0)).size:
        taken = _first(frequency[over], surplus[over]) & (frequency[over] > 1)
        frequency[over] -= taken
        surplus[over] -= taken.sum(axis=-1)
    return frequency.reshape(weights.shape)


def _first(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Whether each is among the `counts` largest of its row; of equal ones the first are.

    Args:
      values: int64[rows, symbols].
      counts: int64[rows]; none of a row where it is below 1.
    """
    places = values.shape[-1]
    ranked = values * places + np.arange(places - 1, -1, -1)  # no two are equal
    last = places - np.clip(counts, 0, places)  # of a row in ascending order, the first that counts
    ordered = np.take_along_axis(
        np.sort(ranked, axis=-1), np.minimum(last, places - 1)[:, None], axis=-1
    )
    return (ranked >= ordered) & (last < places)[:, None]


def frequencies_of(levels: np.ndarray) -> np.ndarray:
    """Frequencies of levels, int64[tables, symbols] both."""
    return normalize(WEIGHTS[levels])


def levels_of(counts: np.ndarray) -> np.ndarray:
    """The levels nearest to counts, 1 at the least. int64[contexts, symbols] both, below 2^31."""
    share = (counts << 32) // np.maximum(1, counts.sum(axis=1, keepdims=True))
    return 1 + np.searchsorted(_BOUNDS, share, side="right")


def levels_of_used(counts: np.ndarray) -> np.ndarray:
    """Levels of counts of any size, int64[tables, symbols]; 0 of those that are 0."""
    most = counts.max(axis=1, keepdims=True)
    shift = np.maximum(0, np.frexp(most.astype(np.float64))[1] - 31)
    scaled = np.where(counts > 0, np.maximum(1, counts >> shift), 0)
    return np.where(counts > 0, levels_of(scaled), 0)


def costs(frequencies: np.ndarray) -> np.ndarray:
    """Cost of symbols of such frequencies, in 2^-COST_BITS bit; 0 of those that there are not."""
    return _COST[frequencies]


def _folded(levels: np.ndarray) -> np.ndarray:
    delta = levels.copy()
    delta[1:] -= levels[:-1]
    delta[0, 1:] -= levels[0, :-1]
    delta[0, 0] -= FIRST_LEVEL
    return np.where(delta < 0, -2 * delta - 1, 2 * delta).reshape(-1)


def write_levels(levels: np.ndarray) -> bytes:
    """Levels of all tables, as the module's docstring has it."""
    folded = _folded(levels)
    rice = int(np.argmin(_rice_bits(folded, range(RICES))))
    low = (folded[:, None] >> np.arange(rice)) & 1
    return bytes([rice]) + bits.unary(folded >> rice) + bits.pack(low)


def written_bytes(levels: np.ndarray, symbols: np.ndarray) -> np.ndarray:
    """Bytes that `write_levels` takes of each row alone.

    Args:
      levels: int64[tables, most symbols].
      symbols: int64[tables], how many of a row there are.

    Returns:
      int64[tables].
    """
    delta = np.diff(levels.astype(np.int16), prepend=np.int16(FIRST_LEVEL))
    folded = np.where(delta < 0, -2 * delta - 1, 2 * delta).astype(np.uint8)  # up to 2 LEVELS
    folded *= np.arange(levels.shape[1]) < symbols[:, None]
    high = np.array([(folded >> k).sum(axis=1, dtype=np.int64) for k in range(RICES)])
    rice = np.argmin(high + np.arange(RICES)[:, None] * symbols, axis=0)
    high = np.take_along_axis(high, rice[None], axis=0)[0]
    return 1 + -(-(high + symbols) // 8) + -(-rice * symbols // 8)


def levels_bits(levels: np.ndarray) -> int:
    """Bits that `write_levels` takes, about."""
    folded = _folded(levels)
    return folded.size + int(_rice_bits(folded, range(1, 4)).min())


def _rice_bits(folded: np.ndarray, ks: Sequence[int]) -> np.ndarray:
    """Bits that each k takes, but for the ones that end unary codes."""
    shifts = np.array(ks)
    return (folded >> shifts[:, None]).sum(axis=1) + shifts * folded.size


def read_levels(reader: bits.Reader, contexts: int, symbols: int) -> np.ndarray:
    """The levels that `write_levels` wrote.

    Raises:
      CorruptError: no levels of tables.
    """
    rice = reader.integer("u1")
    if rice > MAX_RICE:
        raise CorruptError("frequency levels", expected=f"k up to {MAX_RICE}", found=rice)
    high = reader.unary(contexts * symbols)
    low = reader.bits(high.size * rice).reshape(high.size, rice).astype(np.int64)
    folded = (high << rice) + (low << np.arange(rice)).sum(axis=1)
    delta = np.where(folded & 1, -(folded + 1) // 2, folded // 2).reshape(contexts, symbols)
    delta[0] = np.cumsum(delta[0]) + FIRST_LEVEL
    levels = np.cumsum(delta, axis=0)
    if levels.min() < 0 or levels.max() > LEVELS or not levels.any(axis=1).all():
        raise CorruptError(
            "frequency levels",
            expected=f"0 to {LEVELS}, not all 0",
            found=f"{levels.min()} to {levels.max()}",
        )
    return levels
