"""Matrices that kernels read out of a stack, where they lie.

What a kernel is given a slice of, XLA copies first: three times the bytes. So kernels take whole
arrays of a stack, and which matrix it is as a scalar, on TPU the first one that is prefetched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import pallas as pl

from .resident import ResidentTensor


def which(index: jax.Array | None) -> list[jax.Array]:
    """The scalar that says which matrix it is, as kernels are given it; none without a stack."""
    return [] if index is None else [index.reshape(1)]


def spec(
    weight: ResidentTensor,
    block: tuple[int, ...],
    index: Callable[..., tuple[Any, ...]],
    **options: Any,
) -> pl.BlockSpec:
    """Blocks of one of the weight's arrays.

    Args:
      index: (j, k) -> indices of a block, of a grid of two axes.
    """
    if weight.index is None:
        return pl.BlockSpec(block, lambda j, k, *_: index(j, k), **options)
    return pl.BlockSpec((None, *block), lambda j, k, at, *_: (at[0], *index(j, k)), **options)


def body(weight: ResidentTensor, kernel: Callable[..., None]) -> Callable[..., None]:
    """The kernel, which is not shown what `which` gave."""
    if weight.index is None:
        return kernel
    return lambda _, *refs: kernel(*refs)
