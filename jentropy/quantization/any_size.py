"""As many of BitStack's blocks as there is room for.

A matrix of the recipe `bitstack` is a sum of blocks, each about a bit of every weight, and each
makes up for what those before it left: the first of them are a matrix too. Of several matrices the
block is kept next that brings most for its bytes.

References:
  X. Wang et al., BitStack, arXiv 2410.23918, which sorts blocks by the perplexity that they save;
  here it is squared errors, of matrices that are told to matter more by so much more.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from jentropy.errors import InputError, UnsupportedError
from jentropy.formats import QuantizedTensor

from .alphabets.integer import integer_element

STEP, SIDES = "sign_ranks", ("left", "right")


def fewer_blocks(tensor: QuantizedTensor, blocks: int) -> QuantizedTensor:
    """A matrix of fewer of its blocks.

    Args:
      tensor: made by the alphabet `SignRanks`, without transforms.
      blocks: how many of the first, 1 or more.

    Raises:
      UnsupportedError: a tensor of another kind.
      InputError: more blocks than it has, or none.

    Example:
      >>> from jentropy.quantization import RECIPES, quantize_weight
      >>> made = quantize_weight(jnp.eye(32), RECIPES["bitstack"])
      >>> fewer_blocks(made, 2).number_format.name, size_of(made, 2)
      ('SIGN_RANKS2', 1280)
    """
    told = tensor.number_format
    if told.decoder.name != STEP or told.transforms:
        raise UnsupportedError("blocks of a tensor", expected="SIGN_RANKS", found=told.name)
    if not 0 < blocks <= _blocks(tensor):
        raise InputError("blocks", expected=f"1 to {_blocks(tensor)}", found=blocks)
    codes = dict(tensor.codes) | {side: tensor.codes[side][:blocks] for side in SIDES}
    codes["code"] = tensor.codes["code"] & np.uint8((1 << blocks) - 1)
    arrays = tuple(replace(a, shape=(blocks, *a.shape[1:])) for a in told.decoder.arrays)
    number_format = replace(
        told,
        name=f"SIGN_RANKS{blocks}",
        element=integer_element(max(2, blocks), 0),
        decoder=replace(told.decoder, arrays=arrays),
    )
    return QuantizedTensor(number_format=number_format, codes=codes).check()


def within(
    tensors: Mapping[str, QuantizedTensor],
    size_bytes: int,
    sensitivities: Mapping[str, float] | None = None,
) -> dict[str, QuantizedTensor]:
    """Matrices of as many of their blocks as fit.

    Args:
      tensors: by name, see `fewer_blocks`.
      size_bytes: for all of them, as `size_of` counts.
      sensitivities: what a squared error of a weight costs, by name; None: the same.

    Raises:
      InputError: less than a block of each takes.
      UnsupportedError: see `fewer_blocks`.
    """
    kept = dict.fromkeys(tensors, 1)
    room = size_bytes - sum(size_of(tensor, 1) for tensor in tensors.values())
    if room < 0:
        raise InputError("bytes", expected=f"at least {size_bytes - room}", found=size_bytes)
    gains = {name: _gains(tensor) for name, tensor in tensors.items()}
    told = dict(sensitivities or {})
    waiting: list[tuple[float, str]] = []

    def put(name: str) -> None:
        gain = next(gains[name], None)
        if gain is not None:
            each = size_of(tensors[name], 1)
            heapq.heappush(waiting, (-gain * told.get(name, 1.0) / each, name))

    for name in tensors:
        put(name)
    while waiting:
        _, name = heapq.heappop(waiting)
        if size_of(tensors[name], 1) <= room:  # else none of its later ones fits either
            room -= size_of(tensors[name], 1)
            kept[name] += 1
            put(name)
    return {name: fewer_blocks(tensor, kept[name]) for name, tensor in tensors.items()}


def size_of(tensor: QuantizedTensor, blocks: int) -> int:
    """Bytes of so many blocks: a bit of each weight, and factors.

    Args:
      tensor: see `fewer_blocks`.
      blocks: how many.
    """
    rows, columns = tensor.shape
    factors = sum(tensor.codes[side][:1].nbytes for side in SIDES)
    return blocks * (-(-rows * columns // 8) + factors)


def _blocks(tensor: QuantizedTensor) -> int:
    return int(tensor.codes["left"].shape[0])


def _gains(tensor: QuantizedTensor) -> Iterator[float]:
    """How much nearer to the whole each block but the first brings those before it."""
    whole, before = tensor.dequantize(jnp.float32), np.inf
    for blocks in range(1, _blocks(tensor) + 1):
        part = fewer_blocks(tensor, blocks).dequantize(jnp.float32)
        error = float(jnp.square(jnp.asarray(part) - jnp.asarray(whole)).sum())
        if blocks > 1:
            yield before - error
        before = error
