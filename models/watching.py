"""What the matrices of a block are given, summed up while it is traced.

Of every `Linear`, and of every expert over the rows that come to it:

    hessian   sum of x x^T over its inputs
    low, high least and greatest x of every channel, and 0
    rows      how many
    squares   sum of the squares of the derivatives of a loss by its outputs
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from .experts import Projection
from .layers import Linear

ROWS = 128  # of an expert that are multiplied at once

Sums = dict[str, Any]
JOINS = {"hessian": jnp.add, "low": jnp.minimum, "high": jnp.maximum, "rows": jnp.add}


def zeros(lead: tuple[int, ...], width: int) -> Sums:
    """No sums yet, of inputs of a width, with axes in front."""
    return {
        "hessian": jnp.zeros((*lead, width, width), jnp.float32),
        "low": jnp.zeros((*lead, width), jnp.float32),
        "high": jnp.zeros((*lead, width), jnp.float32),
        "rows": jnp.zeros(lead, jnp.int32),
    }


def summed(x: Float[Array, "rows K"], sizes: Int[Array, " experts"] | None) -> Sums:
    """Sums over rows, or over those of each expert."""
    x = x.astype(jnp.float32)
    if sizes is None:
        return {
            "hessian": jnp.matmul(x.T, x, precision="highest"),
            "low": jnp.minimum(x.min(0), 0),
            "high": jnp.maximum(x.max(0), 0),
            "rows": jnp.int32(len(x)),
        }
    ends = jnp.cumsum(sizes)
    padded = jnp.pad(x, ((0, ROWS), (0, 0)))

    def of_one(first: Array, end: Array) -> Sums:
        def add(n: Array, sums: Sums) -> Sums:
            start = first + n * ROWS
            part = jax.lax.dynamic_slice_in_dim(padded, start, ROWS)
            part = jnp.where((start + jnp.arange(ROWS) < end)[:, None], part, 0)
            return _joined(sums, summed(part, None))

        return jax.lax.fori_loop(0, -((first - end) // ROWS), add, zeros((), x.shape[1]))

    found = jax.lax.map(lambda ends: of_one(*ends), (ends - sizes, ends))
    return {**found, "rows": sizes}


def _joined(sums: Sums, more: Sums) -> Sums:
    return {name: JOINS[name](one, more[name]) for name, one in sums.items()}


def added(sums: Sums, more: Sums, at: Array | int) -> Sums:
    """The sums of all layers with more of one."""
    joined = _joined({name: one[at] for name, one in sums.items()}, more)
    return {name: one.at[at].set(joined[name]) for name, one in sums.items()}


def _projections(block: nnx.Module) -> dict[str, Any]:
    """Its matrices by path."""
    return {
        ".".join(map(str, path)): part
        for path, part in nnx.iter_modules(block)
        if isinstance(part, Linear | Projection)
    }


class Inputs:
    """What matrices are given while a block is traced, by the paths that share it."""

    def __init__(self, block: nnx.Module):
        self.seen: dict[int, tuple[list[str], Array, Array | None]] = {}
        self.outputs: dict[str, int] = {}
        for path, part in _projections(block).items():
            part.around = partial(self._see, path)

    def _see(
        self, path: str, product: Callable[[Array], Array], x: Array, sizes: Array | None = None
    ) -> Array:
        self.seen.setdefault(id(x), ([], x, sizes))[0].append(path)
        y = product(x)
        self.outputs[path] = y.shape[-1]
        return y

    def items(self) -> Iterator[tuple[str, Array, Array | None]]:
        """Paths, input, and rows of each expert."""
        for paths, x, sizes in self.seen.values():
            yield ",".join(paths), x.reshape(-1, x.shape[-1]), sizes


@jax.custom_vjp
def _watched(y: Array, squares: Array, sizes: Array | None) -> Array:
    """y. The derivative by `squares` is the sum of the squares of that by y, of each expert's."""
    return y


def _watched_forward(y: Array, squares: Array, sizes: Array | None) -> tuple[Array, Array | None]:
    return y, sizes


def _watched_backward(sizes: Array | None, g: Array) -> tuple[Array, Array, None]:
    squares = jnp.square(g.astype(jnp.float32))
    if sizes is None:
        return g, squares.sum(), None
    expert = jnp.searchsorted(jnp.cumsum(sizes), jnp.arange(len(g)), side="right")
    return g, jax.ops.segment_sum(squares.sum(-1), expert, len(sizes)), None


_watched.defvjp(_watched_forward, _watched_backward)


def watch(block: nnx.Module, squares: Mapping[str, Array]) -> None:
    """Has the derivatives by `squares` be those of the outputs of the block's matrices, squared."""

    def around(
        own: Array, product: Callable[[Array], Array], x: Array, sizes: Array | None = None
    ) -> Array:
        return _watched(product(x), own, sizes)

    for path, part in _projections(block).items():
        part.around = partial(around, squares[path])
