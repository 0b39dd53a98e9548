"""How codes lie in a stored array: the leaves of a weight on disk.

`UNPACKINGS` has every way by name, with the options that it takes. Name and options are plain data:
the index of a compressed checkpoint holds them, and a weight is read by them alone, whichever
dialect found it. So a name is a file format, like a codec's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
    raw_element,
    unpack,
)

from .contents import Shape, StoredArray
from .gguf_blocks import PACKINGS

WHOLE, PACKED, BLOCKS, SWIZZLED, INDEX = "whole", "packed", "blocks", "swizzled", "index"
WORD = np.dtype(np.uint32)  # that a number may be added to
TILE_ROWS, TILE_COLUMNS, TILE_STRIDE = 128, 4, 32
_INTEGERS = tuple(map(np.dtype, ("i4", "u1", "u4", "i1", "i2", "u2", "i8", "u8")))


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCodes:
    """Codes in a stored array, unread: a leaf of `QuantizedTensor`, which NumPy reads on demand.

    Attributes:
      array: what they lie in.
      element: their element format.
      shape: theirs: the weight's, or that of a parameter's grid.
      unpacking: a name in `UNPACKINGS`.
      options: those of its options that are not as usual, and perhaps others.

    Raises:
      InputError: an unknown name or option, an array of a dtype or a shape that does not hold such
        codes. Axes of one entry may be there or not.
    """

    array: StoredArray
    element: ElementFormat
    shape: Shape
    unpacking: str = WHOLE
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known, array = UNPACKINGS.get(self.unpacking), self.array
        if (
            known is None
            or not self.options.keys() <= known.options.keys()
            or not all(known.options[key][1](value) for key, value in self._options().items())
        ):
            found = f"{self.unpacking!r:.40} {dict(self.options)!r:.80}"
            raise self._error("how codes lie", f"one of {', '.join(UNPACKINGS)}", found)
        dtypes = known.dtypes(self)
        if array.dtype not in dtypes:
            raise self._error("dtype", " or ".join(map(str, dtypes)), array.dtype)
        shape = known.shape(self, **self._options())
        if shape is None or _long(shape) != _long(array.shape):
            expected = f"one of {self.unpacking}" if shape is None else list(shape)
            raise self._error("shape", expected, list(array.shape))

    def _error(self, what: str, expected: object, found: object) -> InputError:
        file, name = self.array.file, self.array.name
        return InputError(what, file=file, tensor=name, expected=expected, found=found)

    def _options(self) -> dict[str, Any]:
        """All options."""
        known = UNPACKINGS[self.unpacking].options
        return {key: self.options.get(key, usual) for key, (usual, _) in known.items()}

    @property
    def unusual(self) -> dict[str, Any]:
        """The options that are not as usual."""
        known = UNPACKINGS[self.unpacking].options
        return {key: value for key, value in self.options.items() if value != known[key][0]}

    @property
    def dtype(self) -> np.dtype:
        """Of the codes."""
        return self.array.dtype if self.unpacking == INDEX else code_dtype(self.element.dtype)

    def unpack(self, values: np.ndarray) -> np.ndarray:
        """The codes in what the array holds."""
        return UNPACKINGS[self.unpacking].unpack(self, values, **self._options())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.unpack(self.array.read()), dtype)


# Where codes lie: in an array as they are, or in another way, by its name and options.
Stored = StoredArray | tuple[StoredArray, str, Mapping[str, Any]]


def stored_weight(
    number_format: Format, shape: Shape, stored: Mapping[str, Stored]
) -> QuantizedTensor:
    """A weight of stored arrays, unread.

    Args:
      shape: of the weight.
      stored: where its codes and parameters lie, and perhaps the group of each column, by name.

    Raises:
      InputError: they are not the format's, or an array cannot be what it is said to be.
    """
    rank = max([len(p.block or ()) for p in number_format.parameters], default=0)
    if len(shape) < rank:
        raise InputError("weight", expected=f"{rank} axes or more", found=list(shape))
    arrays = code_arrays(number_format, shape)
    if stored.keys() - {GROUP_INDEX} != arrays.keys() or (not shape[-1:] and GROUP_INDEX in stored):
        raise InputError("parts of the weight", expected=list(arrays), found=list(stored))
    elements = {p.name: p.element for p in number_format.parameters}
    codes = {}
    for key, told in stored.items():
        array, unpacking, options = told if isinstance(told, tuple) else (told, WHOLE, {})
        codes[key] = StoredCodes(
            array=array,
            element=raw_element(array.dtype)
            if key == GROUP_INDEX
            else elements.get(key, number_format.element),
            shape=shape[-1:] if key == GROUP_INDEX else arrays[key].shape,
            unpacking=unpacking,
            options=options,
        )
    return QuantizedTensor(number_format=number_format, codes=codes)


def _long(shape: Shape) -> list[int]:
    """Axes of more than one entry."""
    return [n for n in shape if n != 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacking:
    """A way in which codes lie in an array.

    Attributes:
      unpack: from what an array holds to unsigned codes of their shape.
      dtypes: those that the array may have.
      shape: the one that the array has; None: no array holds the codes so.
      options: of each what it usually is (None: it is always told), and whether it may be a value.
    """

    unpack: Callable[..., np.ndarray]
    dtypes: Callable[[StoredCodes], tuple[np.dtype, ...]]
    shape: Callable[..., Shape | None]
    options: Mapping[str, tuple[Any, Callable[[Any], bool]]] = field(default_factory=dict)


def _same(codes: StoredCodes) -> tuple[np.dtype, ...]:
    """The elements' own dtype; powers of two have no dtype in many files."""
    own = codes.element.dtype
    return (own, np.dtype(np.uint8)) if codes.element is FP8_E8M0 else (own,)


def _transposed(shape: Shape) -> Shape:
    return (*shape[:-2], *shape[:-3:-1])


def _turned_back(codes: StoredCodes, stored: np.ndarray, *, transposed: bool) -> np.ndarray:
    """Codes of their shape, of those that are stored so or transposed."""
    if transposed:
        return np.swapaxes(stored.reshape(_transposed(codes.shape)), -1, -2)
    return stored.reshape(codes.shape)


def _whole(codes: StoredCodes, values: np.ndarray, *, transposed: bool, flip: int) -> np.ndarray:
    stored = codes_of(values)
    flipped = stored ^ stored.dtype.type(flip) if flip else stored
    return _turned_back(codes, flipped, transposed=transposed)


def _whole_shape(codes: StoredCodes, *, transposed: bool, flip: int) -> Shape | None:
    if flip >> 8 * codes.dtype.itemsize:
        return None
    return _transposed(codes.shape) if transposed else codes.shape


def _packed(
    codes: StoredCodes,
    values: np.ndarray,
    *,
    axis: int,
    add: int,
    order: tuple[int, ...],
    transposed: bool,
) -> np.ndarray:
    shape = _transposed(codes.shape) if transposed else codes.shape
    words = values.reshape(_words(codes, shape, axis))
    if add:
        words = words.view(WORD) + WORD.type(add)
    found = unpack(words, codes.element.code_bits, axis=axis, count=shape[axis])
    if order:
        runs = found.reshape(-1, len(order))
        found = np.empty_like(runs)
        found[:, list(order)] = runs
    return _turned_back(codes, found, transposed=transposed)


def _packed_shape(
    codes: StoredCodes, *, axis: int, add: int, order: tuple[int, ...], transposed: bool
) -> Shape | None:
    array, bits, shape = codes.array, codes.element.code_bits, codes.shape
    if bits > 8 or len(shape) < max(-axis, 2 * transposed):
        return None
    shape = _transposed(shape) if transposed else shape
    is_run = axis == -1 and len(order) * bits == 8 * array.dtype.itemsize
    if (order and (not is_run or shape[-1] % len(order))) or (add and array.dtype.itemsize != 4):
        return None
    words, outer = _words(codes, shape, axis), array.shape[: len(shape) - 1]
    # A row of words may be stored as blocks of words.
    is_row = (*outer, math.prod(array.shape[len(shape) - 1 :])) == words
    return array.shape if is_row else words


def _words(codes: StoredCodes, shape: Shape, axis: int) -> Shape:
    """The shape of the words that hold packed codes of a shape."""
    per_word, axis = 8 * codes.array.dtype.itemsize, len(shape) + axis
    words = -(-shape[axis] * codes.element.code_bits // per_word)
    return (*shape[:axis], words, *shape[axis + 1 :])


def _blocks(codes: StoredCodes, values: np.ndarray, *, packing: str, key: str) -> np.ndarray:
    known = PACKINGS[packing]
    found = known.extract[key](values.reshape(-1, known.bytes))
    return np.ascontiguousarray(found).reshape(codes.shape)


def _blocks_shape(codes: StoredCodes, *, packing: str, key: str) -> Shape | None:
    array, known = codes.array, PACKINGS[packing]
    if array.packing != packing or key not in known.extract or array.shape[-1] % known.bytes:
        return None
    weights = (*array.shape[:-1], array.shape[-1] // known.bytes * known.weights)
    elements = {p.name: (p.element, p.grid(weights)) for p in known.format.parameters}
    told = elements.get(key, (known.format.element, weights))
    return array.shape if told == (codes.element, codes.shape) else None


def swizzled(grid: Shape) -> Shape | None:
    """The shape in which scales of a grid are stored for the tensor core, in whole tiles."""
    if len(grid) < 2:
        return None
    down, across = _tiles(grid)
    return (*grid[:-2], down * TILE_STRIDE, across * TILE_COLUMNS * TILE_ROWS // TILE_STRIDE)


def _tiles(grid: Shape) -> tuple[int, int]:
    return -(-grid[-2] // TILE_ROWS), -(-grid[-1] // TILE_COLUMNS)


def _unswizzled(codes: StoredCodes, values: np.ndarray) -> np.ndarray:
    grid = codes.shape
    (down, across), stack = _tiles(grid), grid[:-2]
    inner = TILE_ROWS // TILE_STRIDE
    tiles = codes_of(values).reshape(
        math.prod(stack), down, across, TILE_STRIDE, inner, TILE_COLUMNS
    )
    # Axes: tile row, group of 32 rows, row of the group, tile column, column.
    rows = tiles.transpose(0, 1, 4, 3, 2, 5)
    flat = rows.reshape(*stack, down * TILE_ROWS, across * TILE_COLUMNS)
    return np.ascontiguousarray(flat[..., : grid[-2], : grid[-1]])


def _index(codes: StoredCodes, values: np.ndarray, *, groups: int) -> np.ndarray:
    if values.size and not 0 <= values.min() <= values.max() < groups:
        found = f"{values.min()} to {values.max()}"
        raise codes._error("group indices", f"0 to {groups - 1}", found)
    return values.reshape(codes.shape)


def _size(value: Any) -> bool:
    return type(value) is int and value >= 0


def _flag(value: Any) -> bool:
    return type(value) is bool


def _order(value: Any) -> bool:
    is_sizes = isinstance(value, list | tuple) and all(map(_size, value))
    return is_sizes and sorted(value) == list(range(len(value)))


UNPACKINGS: dict[str, Unpacking] = {
    # A number for each code: its bits, but for those that are flipped.
    WHOLE: Unpacking(
        unpack=_whole,
        dtypes=_same,
        shape=_whole_shape,
        options={"transposed": (False, _flag), "flip": (0, _size)},
    ),
    # Several codes in an integer without gaps along an axis, the first in the low bits. `add` is
    # added to every word of 32 bits before; code i of a word is number `order[i]` of its run.
    PACKED: Unpacking(
        unpack=_packed,
        dtypes=lambda codes: _INTEGERS,
        shape=_packed_shape,
        options={
            "axis": (-1, lambda value: type(value) is int and value in (-1, -2)),
            "add": (0, lambda value: _size(value) and not value >> 8 * WORD.itemsize),
            "order": ((), _order),
            "transposed": (False, _flag),
        },
    ),
    # One of the fields of GGUF's blocks.
    BLOCKS: Unpacking(
        unpack=_blocks,
        dtypes=lambda codes: (np.dtype(np.uint8),),
        shape=_blocks_shape,
        options={
            "packing": (None, lambda value: isinstance(value, str) and value in PACKINGS),
            "key": (None, lambda value: isinstance(value, str)),
        },
    ),
    # A number for each code, padded to 128 rows and 4 columns, in tiles of [128, 4] one after
    # another, the rows of a tile in the order 0, 32, 64, 96, 1, 33, ...
    SWIZZLED: Unpacking(
        unpack=_unswizzled, dtypes=_same, shape=lambda codes: swizzled(codes.shape)
    ),
    # The group of each column, from 0 below `groups`.
    INDEX: Unpacking(
        unpack=_index,
        dtypes=lambda codes: (np.dtype(np.int32), np.dtype(np.int64)),
        shape=lambda codes, groups: codes.shape,
        options={"groups": (None, lambda value: _size(value) and value > 0)},
    ),
}
