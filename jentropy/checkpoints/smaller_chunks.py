"""Chunks of zarr too large to be written, which TensorStore takes as a whole, made smaller.

Readers find the same array: chunks are no part of what it is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

WHOLE = 1 << 26  # bytes of the largest chunk that is written

Shape = tuple[int, ...]


def divided(metadata: Mapping[str, Any], itemsize: int) -> Mapping[str, Any]:
    """What zarr keeps of an array whose chunks, or shards of them, are `WHOLE` bytes at the most.

    Args:
      metadata: of the array as it was.
      itemsize: bytes of a number.

    Example:
      >>> divided({"zarr_format": 2, "chunks": [1 << 20, 1 << 10]}, itemsize=2)["chunks"]
      [32768, 1024]
    """
    match metadata:
        case {"zarr_format": 2, "chunks": [*chunk]}:
            return {**metadata, "chunks": _divided(chunk, itemsize)}
        case {
            "chunk_grid": {"configuration": {"chunk_shape": [*shard]}, **grid},
            "codecs": [{"configuration": {"chunk_shape": [*chunk], **sharded}, **codec}],
        }:
            shard, chunk = _divided_shard(shard, chunk, itemsize)
            codec["configuration"] = {"chunk_shape": chunk, **sharded}
            told = {"chunk_shape": shard}
            return {**metadata, "chunk_grid": {**grid, "configuration": told}, "codecs": [codec]}
        case {"chunk_grid": {"configuration": {"chunk_shape": [*chunk]}, **grid}}:
            told = {"chunk_shape": _divided(chunk, itemsize)}
            return {**metadata, "chunk_grid": {**grid, "configuration": told}}
    return metadata


def _divided_shard(
    shard: list[Any], chunk: list[Any], itemsize: int
) -> tuple[list[Any], list[Any]]:
    small = _divided(chunk, itemsize)
    if small != chunk:
        return small, small
    if not (_are_sizes(shard) and _are_sizes(chunk) and len(shard) == len(chunk)):
        return shard, chunk
    if any(s % c for s, c in zip(shard, chunk, strict=True)):
        return shard, chunk
    counts = [s // c for s, c in zip(shard, chunk, strict=True)]
    fewer = _divided(counts, math.prod(chunk) * itemsize)
    return [n * c for n, c in zip(fewer, chunk, strict=True)], chunk


def _divided(chunk: list[Any], itemsize: int) -> list[Any]:
    if not _are_sizes(chunk):
        return chunk  # TensorStore says what is wrong
    sizes = list(chunk)
    for axis, size in enumerate(sizes):
        at_once = max(1, WHOLE // (math.prod(sizes[axis + 1 :]) * itemsize))
        if size <= at_once:
            break
        sizes[axis] = -(-size // -(-size // at_once))
    return sizes


def _are_sizes(shape: Sequence[Any]) -> bool:
    return all(isinstance(size, int) and size > 0 for size in shape)


def blocks(shape: Shape, chunk: Shape, itemsize: int, most: int) -> Iterator[tuple[slice, ...]]:
    """Parts of an array that are chunks as a whole, in C order.

    Args:
      most: bytes of a part, but at least one chunk.

    Example:
      >>> [block[0] for block in blocks((10, 4), (2, 4), itemsize=1, most=16)]
      [slice(0, 4, None), slice(4, 8, None), slice(8, 10, None)]
    """
    steps = list(chunk)
    for axis in reversed(range(len(shape))):
        size = math.prod(steps) * itemsize
        steps[axis] *= max(1, min(most // max(1, size), -(-shape[axis] // steps[axis])))
        if steps[axis] < shape[axis]:
            break
    grid = [range(0, size, step) for size, step in zip(shape, steps, strict=True)]
    for begins in itertools.product(*grid):
        yield tuple(slice(b, min(b + s, n)) for b, s, n in zip(begins, steps, shape, strict=True))
