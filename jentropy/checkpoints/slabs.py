"""A weight's codes in slabs along its first axis: a large one is in memory in part.

A slab is whole blocks of all parameters, whole words of packed codes and whole chunks of what Orbax
wrote. What cannot be cut so is read whole: the fields of GGUF's blocks in an archive, weights that
a format transforms, an array that is one chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from jentropy.entropy import Slab
from jentropy.formats import QuantizedTensor
from jentropy.formats.format import WHOLE

from .unpacking import Field, Packed, StoredCodes, Whole

LARGE = 1 << 26  # bytes; codes of fewer are read whole
WEIGHTS = 1 << 23  # of a slab, about


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
    code, blocks = stored["code"], _blocks(weight)
    beside = {key: np.asarray(leaf) for key, leaf in stored.items() if key != "code"}
    counted = {key for key in beside if blocks.get(key, WHOLE) == WHOLE}
    for start in range(0, code.shape[0], step):
        stop = min(start + step, code.shape[0])
        part = {"code": _rows(code, start, stop)}
        for key, values in beside.items():
            block = blocks.get(key, WHOLE)
            part[key] = values
            if block != WHOLE:
                part[key] = values[start // block : -(-stop // block)]
        yield Slab(part, counted if start else ())


def _blocks(weight: QuantizedTensor) -> dict[str, int]:
    """Rows of the weight that an entry of each parameter serves."""
    rank = len(weight.shape)
    return {p.name: p.blocks(rank)[0] for p in weight.number_format.parameters}


def _step(weight: QuantizedTensor, stored: Mapping[str, StoredCodes]) -> int | None:
    """Rows of a slab; None if the weight is read whole."""
    kind, code = weight.number_format, stored["code"]
    if code.array.part is None or not code.shape or code.shape != tuple(weight.shape):
        return None
    if math.prod(code.shape) * code.dtype.itemsize <= LARGE:
        return None
    if kind.transforms or kind.side_arrays or (cut := _cut(code)) is None:
        return None
    axis, some, entries = cut
    rows = code.shape[0]
    blocks = [min(block, rows) for block in _blocks(weight).values() if block != WHOLE]
    together = code.array.together[axis] if code.array.together else 1
    least = math.lcm(*blocks, some, -(-together * some // entries))
    step = least * max(1, WEIGHTS * rows // math.prod(code.shape) // least)
    return step if step < rows else None


def _cut(code: StoredCodes) -> tuple[int, int, int] | None:
    """Axis of the array along which rows of codes lie; so many rows to so many of its entries."""
    how, rank = code.unpacking, len(code.shape)
    if not isinstance(how, Whole | Packed | Field) or len(code.array.shape) != rank:
        return None
    axis = 1 if rank == 2 and getattr(how, "transposed", False) else 0
    if isinstance(how, Packed) and how.axis % rank == axis:
        bits, word = code.element.code_bits, 8 * code.array.dtype.itemsize
        common = math.lcm(bits, word)
        return axis, common // bits, common // word
    return axis, 1, 1


def _rows(code: StoredCodes, start: int, stop: int) -> np.ndarray:
    """Some rows of codes."""
    cut = _cut(code)
    assert cut is not None
    assert code.array.part is not None
    axis, rows, entries = cut
    shape = list(code.array.shape)
    end = min(-(-stop * entries // rows), shape[axis])
    index = [slice(None)] * len(shape)
    index[axis] = slice(start // rows * entries, end)
    values = code.array.part(tuple(index))
    shape[axis] = values.shape[axis]
    array = replace(code.array, shape=tuple(shape), read=lambda: values, part=None, together=())
    part = replace(code, array=array, shape=(stop - start, *code.shape[1:]))
    return part.unpack(values)
