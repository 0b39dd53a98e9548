"""A weight's codes in slabs along an axis: a large one is in memory in part.

The axis is the first that is longer than one. A slab is whole blocks of all parameters, whole words
of packed codes and whole chunks of what Orbax wrote. What cannot be cut so is read whole: weights
that a format decodes or transforms as a matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from jentropy.entropy import Slab
from jentropy.formats import QuantizedTensor
from jentropy.formats.format import WHOLE

from .contents import StoredArray, in_memory
from .unpacking import Field, Packed, StoredCodes, Whole

LARGE = 1 << 26  # bytes; codes of fewer are read whole
WEIGHTS = 1 << 23  # of a slab, about
AHEAD = 1 << 23  # bytes of an array that are read at once, at least: of parameters slabs are small

Arrays = Mapping[str, np.ndarray]


def runs(
    weight: QuantizedTensor, stored: Mapping[str, StoredCodes], read: Callable[[], Arrays]
) -> Iterator[Arrays]:
    """A weight's codes and parameters as `Checkpoint.read_runs` gives them.

    Args:
      weight: it.
      stored: its leaves that lie in stored arrays.
      read: gives all of it.
    """
    step = _step(weight, stored) if stored.keys() == weight.codes.keys() else None
    if step is None:
        yield read()
        return
    # One array may hold several of them.
    arrays = {leaf.array.name: _read_ahead(leaf.array) for leaf in stored.values()}
    leaves = {k: replace(leaf, array=arrays[leaf.array.name]) for k, leaf in stored.items()}
    axis, blocks = _axis(weight.shape), _blocks(weight)
    whole = {
        key: np.asarray(leaf)
        for key, leaf in leaves.items()
        if key != "code" and (blocks[key] == WHOLE or not _is_cut_anywhere(leaf, axis))
    }
    counted = {key for key in whole if blocks[key] == WHOLE}
    for start in range(0, weight.shape[axis], step):
        part, stop = {}, min(start + step, weight.shape[axis])
        for key, leaf in leaves.items():
            if key in counted:
                part[key] = whole[key]
                continue
            ends = start // blocks[key], -(-stop // blocks[key])
            if key in whole:
                part[key] = whole[key][(slice(None),) * axis + (slice(*ends),)]
            else:
                part[key] = _rows(leaf, axis, *ends)
        yield Slab(part, counted if start else ())


def _axis(shape: tuple[int, ...]) -> int:
    """The axis along which a weight is cut."""
    return next((axis for axis, size in enumerate(shape) if size > 1), 0)


def _read_ahead(array: StoredArray) -> StoredArray:
    """An array that gives parts, of which more is read at once than is asked for if that is little.

    One that gave none is read now.
    """
    if array.part is None:
        return in_memory(array.name, array.read(), array.file, array.packing)
    return replace(array, part=_Ahead(array, array.part))


class _Ahead:
    """Parts of an array along one axis, in order.

    Args:
      array: it.
      read: its `part`.
    """

    def __init__(self, array: StoredArray, read: Callable[[tuple[slice, ...]], np.ndarray]):
        self._shape, self._nbytes, self._read = array.shape, array.nbytes, read
        self._held, self._begin, self._end = np.zeros(0, array.dtype), 0, 0

    def __call__(self, index: tuple[slice, ...]) -> np.ndarray:
        axis = next((n for n, cut in enumerate(index) if cut != slice(None)), 0)
        size, cut = self._shape[axis], index[axis]
        if not self._begin <= cut.start <= cut.stop <= self._end:
            some = AHEAD * size // max(1, self._nbytes)
            self._begin, self._end = cut.start, min(max(cut.stop, cut.start + some), size)
            here = slice(self._begin, self._end)
            self._held = self._read((*index[:axis], here, *index[axis + 1 :]))
        here = slice(cut.start - self._begin, cut.stop - self._begin)
        return self._held[(*index[:axis], here)]


def _blocks(weight: QuantizedTensor) -> dict[str, int]:
    """Rows of the weight that an entry of each of its arrays serves; WHOLE: all."""
    shape = weight.shape
    axis, rank = _axis(shape), len(shape)
    served = {p.name: p.blocks(rank)[axis] for p in weight.number_format.parameters}
    return {key: served.get(key, 1 if key == "code" else WHOLE) for key in weight.codes}


def _step(weight: QuantizedTensor, stored: Mapping[str, StoredCodes]) -> int | None:
    """Rows of a slab; None if the weight is read whole."""
    kind, code, axis = weight.number_format, stored["code"], _axis(weight.shape)
    if not code.shape or code.shape != tuple(weight.shape):
        return None
    if math.prod(code.shape) * code.dtype.itemsize <= LARGE:
        return None
    if kind.transforms or kind.side_arrays or (cut := _cut(code, axis)) is None:
        return None
    along, some, entries = cut
    rows = code.shape[axis]
    blocks = [min(block, rows) for block in _blocks(weight).values() if block != WHOLE]
    together = code.array.together[along] if code.array.together else 1
    least = math.lcm(*blocks, some, -(-together * some // entries))
    step = least * max(1, WEIGHTS * rows // math.prod(code.shape) // least)
    return step if step < rows else None


def _is_cut_anywhere(leaf: StoredCodes, axis: int) -> bool:
    """Whether any rows of codes along an axis are entries of their array."""
    cut = _cut(leaf, axis)
    return cut is not None and cut[1:] == (1, 1)


def _cut(code: StoredCodes, axis: int) -> tuple[int, int, int] | None:
    """How rows of codes along an axis are cut out of the array that they lie in.

    Returns:
      The array's axis along which they lie; so many rows to so many of its entries. None: as a
      whole alone.
    """
    how, rank = code.unpacking, len(code.shape)
    if not isinstance(how, Whole | Packed | Field) or len(code.array.shape) != rank:
        return None
    if getattr(how, "transposed", False) and axis >= rank - 2:
        axis = 2 * rank - 3 - axis
    if isinstance(how, Field) and axis == rank - 1:  # blocks lie along it
        return None
    if isinstance(how, Packed) and how.axis % rank == axis:
        bits, word = code.element.code_bits, 8 * code.array.dtype.itemsize
        common = math.lcm(bits, word)
        return axis, common // bits, common // word
    return axis, 1, 1


def _rows(code: StoredCodes, axis: int, start: int, stop: int) -> np.ndarray:
    """Some rows of codes along an axis."""
    cut = _cut(code, axis)
    assert cut is not None
    assert code.array.part is not None
    along, rows, entries = cut
    shape = list(code.array.shape)
    end = min(-(-stop * entries // rows), shape[along])
    index = [slice(None)] * len(shape)
    index[along] = slice(start // rows * entries, end)
    values = code.array.part(tuple(index))
    shape[along] = values.shape[along]
    array = replace(code.array, shape=tuple(shape), read=lambda: values, part=None, together=())
    of_part = (*code.shape[:axis], stop - start, *code.shape[axis + 1 :])
    part = replace(code, array=array, shape=of_part)
    return part.unpack(values)
