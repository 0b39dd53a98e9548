"""How codes lie in a stored array: the leaves of a weight on disk.

An `Unpacking` is plain data, which the index of a compressed checkpoint holds as `UNPACKINGS` say:
a weight is read by it alone, whichever dialect found it. So its names are a file format, like a
codec's. Each has

    shape    the one that it has; None: no such array holds the codes so
    unpack   from what the array holds to unsigned codes of their shape

To add one: a class here, in `Unpacking` and in `UNPACKINGS`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jentropy.errors import InputError
from jentropy.formats import (
    FP8_E8M0,
    GROUP_INDEX,
    ElementFormat,
    Format,
    QuantizedTensor,
    code_arrays,
    code_dtype,
    codes_of,
    least_rank,
    raw_element,
    unpack,
)
from jentropy.schema import FLAG, SIZE, Key, Kind, below, checked, instance, many, name_in, record

from .contents import Shape, StoredArray
from .gguf_blocks import PACKINGS

WORD = np.dtype(np.uint32)  # that a number may be added to
TILE_ROWS, TILE_COLUMNS, TILE_STRIDE = 128, 4, 32
BYTES = np.dtype(np.uint8)
INTEGERS = tuple(map(np.dtype, ("i4", "u1", "u4", "i1", "i2", "u2", "i8", "u8")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """A number for each code: its bits.

    Attributes:
      transposed: whether the last two axes are stored the other way round.
      flip: bits that are stored inverted.
      coded: whether the numbers are the codes themselves, unsigned integers.
    """

    transposed: bool = False
    flip: int = 0
    coded: bool = False

    def shape(self, codes: StoredCodes) -> Shape | None:
        stored = _transposed(codes.shape) if self.transposed else codes.shape
        return None if self.flip >> 8 * codes.dtype.itemsize else stored

    def unpack(self, codes: StoredCodes, values: np.ndarray) -> np.ndarray:
        stored = codes_of(values)
        flipped = stored ^ stored.dtype.type(self.flip) if self.flip else stored
        return _in_shape(codes, flipped, transposed=self.transposed)


def _transposed(shape: Shape) -> Shape:
    return (*shape[:-2], *shape[:-3:-1])


def _in_shape(codes: StoredCodes, stored: np.ndarray, *, transposed: bool) -> np.ndarray:
    """Codes of their shape, of those that are stored so or transposed."""
    shape = _transposed(codes.shape) if transposed else codes.shape
    return np.swapaxes(stored.reshape(shape), -1, -2) if transposed else stored.reshape(shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """Several codes in each integer, without gaps along an axis, the first in the low bits.

    Attributes:
      axis: -1 or -2, of the array.
      add: a number that is added to every word of 32 bits before.
      order: code i of a word is number `order[i]` of its run; empty: they lie in order.
      transposed: see `Whole`.
    """

    axis: int = -1
    add: int = 0
    order: tuple[int, ...] = ()
    transposed: bool = False

    def shape(self, codes: StoredCodes) -> Shape | None:
        array, bits, rank = codes.array, codes.element.code_bits, len(codes.shape)
        if bits > 8 or rank < max(-self.axis, 2 * self.transposed):
            return None
        words = self._words(codes)
        is_run = self.axis == -1 and len(self.order) * bits == 8 * array.dtype.itemsize
        if self.add and array.dtype.itemsize != WORD.itemsize:
            return None
        if self.order and not (is_run and self._codes(codes)[-1] == words[-1] * len(self.order)):
            return None
        # A row of words may be stored as blocks of words.
        row = (*array.shape[: rank - 1], math.prod(array.shape[rank - 1 :]))
        return array.shape if row == words else words

    def unpack(self, codes: StoredCodes, values: np.ndarray) -> np.ndarray:
        words, count = values.reshape(self._words(codes)), self._codes(codes)[self.axis]
        words = words.view(WORD) + WORD.type(self.add) if self.add else words
        stored = unpack(words, codes.element.code_bits, axis=self.axis, count=count)
        if self.order:
            runs = stored.reshape(-1, len(self.order))
            stored = np.empty_like(runs)
            stored[:, list(self.order)] = runs
        return _in_shape(codes, stored, transposed=self.transposed)

    def _codes(self, codes: StoredCodes) -> Shape:
        """The shape of the codes as they are stored."""
        return _transposed(codes.shape) if self.transposed else codes.shape

    def _words(self, codes: StoredCodes) -> Shape:
        """The shape of the words that hold them."""
        shape, word = list(self._codes(codes)), 8 * codes.array.dtype.itemsize
        shape[self.axis] = -(-shape[self.axis] * codes.element.code_bits // word)
        return tuple(shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One of the fields of GGUF's blocks: type of the blocks, and name."""

    packing: str
    key: str

    def shape(self, codes: StoredCodes) -> Shape | None:
        array, known = codes.array, PACKINGS[self.packing]
        if array.packing != self.packing or array.shape[-1] % known.bytes:
            return None
        weights = (*array.shape[:-1], array.shape[-1] // known.bytes * known.weights)
        fields = {p.name: (p.element, p.grid(weights)) for p in known.number_format.parameters}
        fields["code"] = known.number_format.element, weights
        return array.shape if fields.get(self.key) == (codes.element, codes.shape) else None

    def unpack(self, codes: StoredCodes, values: np.ndarray) -> np.ndarray:
        known = PACKINGS[self.packing]
        field = known.extract[self.key](values.reshape(-1, known.bytes))
        return np.ascontiguousarray(field).reshape(codes.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Swizzled:
    """A number for each code, as the tensor core takes scales: padded to 128 rows and 4 columns.

    Tiles of [128, 4] lie one after another, the rows of a tile in the order 0, 32, 64, 96, 1, 33,
    ...
    """

    def shape(self, codes: StoredCodes) -> Shape | None:
        if len(codes.shape) < 2:
            return None
        down, across = self._tiles(codes)
        columns = across * TILE_COLUMNS * TILE_ROWS // TILE_STRIDE
        return (*codes.shape[:-2], down * TILE_STRIDE, columns)

    def unpack(self, codes: StoredCodes, values: np.ndarray) -> np.ndarray:
        (down, across), (*stack, rows, columns) = self._tiles(codes), codes.shape
        inner = TILE_ROWS // TILE_STRIDE
        tiles = codes_of(values).reshape(
            math.prod(stack), down, across, TILE_STRIDE, inner, TILE_COLUMNS
        )
        # Axes: tile row, group of 32 rows, row of the group, tile column, column.
        flat = tiles.transpose(0, 1, 4, 3, 2, 5)
        padded = flat.reshape(*stack, down * TILE_ROWS, across * TILE_COLUMNS)
        return np.ascontiguousarray(padded[..., :rows, :columns])

    def _tiles(self, codes: StoredCodes) -> tuple[int, int]:
        rows, columns = codes.shape[-2:]
        return -(-rows // TILE_ROWS), -(-columns // TILE_COLUMNS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """The group of each column, no code: below `groups`, which is checked when it is read."""

    groups: int

    def shape(self, codes: StoredCodes) -> Shape | None:
        return codes.shape

    def unpack(self, codes: StoredCodes, values: np.ndarray) -> np.ndarray:
        if values.size and not 0 <= values.min() <= values.max() < self.groups:
            least, most = values.min(), values.max()
            raise codes.error("group indices", f"0 to {self.groups - 1}", f"{least} to {most}")
        return values.reshape(codes.shape)


Unpacking = Whole | Packed | Field | Swizzled | Groups
# Dtypes of arrays; of all others those of the elements.
DTYPES = {
    Packed: INTEGERS,
    Field: (BYTES,),
    Groups: (np.dtype(np.int32), np.dtype(np.int64)),
}
TRANSPOSED = Key(FLAG, default=False)
AXIS = checked(instance("an axis", int), "-1 or -2", lambda axis: axis in (-1, -2))
ORDER = checked(many(SIZE), "every number once", lambda o: sorted(o) == list(range(len(o))))
# Every way by its name, and its JSON.
UNPACKINGS: dict[str, tuple[type[Any], Kind]] = {
    "whole": (
        Whole,
        record(
            Whole,
            {
                "transposed": TRANSPOSED,
                "flip": Key(SIZE, default=0),
                "coded": Key(FLAG, default=False),
            },
        ),
    ),
    "packed": (
        Packed,
        record(
            Packed,
            {
                "axis": Key(AXIS, default=-1),
                "add": Key(below(1 << 8 * WORD.itemsize), default=0),
                "order": Key(ORDER, default=()),
                "transposed": TRANSPOSED,
            },
        ),
    ),
    "blocks": (
        Field,
        record(Field, {"packing": name_in(PACKINGS), "key": instance("a text", str)}),
    ),
    "swizzled": (Swizzled, record(Swizzled, {})),
    "index": (Groups, record(Groups, {"groups": SIZE})),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCodes:
    """Codes in a stored array, unread: a leaf of `QuantizedTensor`, which NumPy reads on demand.

    Attributes:
      array: what they lie in.
      element: their element format.
      shape: theirs: the weight's, or that of a parameter's grid.
      unpacking: how they lie in it.

    Raises:
      InputError: an array of a dtype or a shape that does not hold such codes. Axes of one entry
        may be there or not.
    """

    array: StoredArray
    element: ElementFormat
    shape: Shape
    unpacking: Unpacking

    def __post_init__(self) -> None:
        array, element = self.array, self.element
        # Powers of two have no dtype of their own in many files.
        usual = (element.dtype, BYTES) if element is FP8_E8M0 else (element.dtype,)
        usual = (self.dtype,) if self.unpacking == Whole(coded=True) else usual
        dtypes = DTYPES.get(type(self.unpacking), usual)
        if array.dtype not in dtypes:
            raise self.error("dtype", " or ".join(map(str, dtypes)), array.dtype)
        shape = self.unpacking.shape(self)
        if shape is None or _long(shape) != _long(array.shape):
            expected = f"one for {self.unpacking}" if shape is None else list(shape)
            raise self.error("shape", expected, list(array.shape))

    @property
    def dtype(self) -> np.dtype:
        """Of the codes."""
        is_index = isinstance(self.unpacking, Groups)
        return self.array.dtype if is_index else code_dtype(self.element.dtype)

    def error(self, what: str, expected: object, found: object) -> InputError:
        """What is wrong with the array."""
        file, name = self.array.file, self.array.name
        return InputError(what, file=file, tensor=name, expected=expected, found=found)

    def unpack(self, values: np.ndarray) -> np.ndarray:
        """The codes in what the array holds."""
        return self.unpacking.unpack(self, values)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.unpack(self.array.read()), dtype)


def _long(shape: Shape) -> list[int]:
    """Axes of more than one entry."""
    return [n for n in shape if n != 1]


Stored = StoredArray | tuple[StoredArray, Unpacking]  # where codes lie; whole, if not said


def stored_weight(
    number_format: Format, shape: Shape, stored: Mapping[str, Any]
) -> QuantizedTensor:
    """A weight of stored arrays, unread.

    Args:
      shape: of the weight.
      stored: `Stored` of its codes and parameters, and perhaps of `group_index`, by name.

    Raises:
      InputError: they are not the format's, or an array cannot be what it is said to be.
    """
    rank = least_rank(number_format)
    if len(shape) < max(rank, GROUP_INDEX in stored):
        raise InputError("weight", expected=f"{rank or 1} axes or more", found=list(shape))
    grids = {key: array.shape for key, array in code_arrays(number_format, shape).items()}
    if stored.keys() - {GROUP_INDEX} != grids.keys():
        raise InputError("parts of the weight", expected=list(grids), found=list(stored))
    elements = {p.name: p.element for p in number_format.beside}
    codes = {}
    for key, told in stored.items():
        array, unpacking = told if isinstance(told, tuple) else (told, Whole())
        is_index = key == GROUP_INDEX
        codes[key] = StoredCodes(
            array=array,
            element=raw_element(array.dtype)
            if is_index
            else elements.get(key, number_format.element),
            shape=shape[-1:] if is_index else grids[key],
            unpacking=unpacking,
        )
    return QuantizedTensor(number_format=number_format, codes=codes)
