"""A product with a packed matrix, tile by tile: what plain and grouped products share.

A layout says in a `Body` what it reads for a tile of the matrix and how it adds the tile's product
to its accumulators. `multiply` goes over the tiles of one matrix, `grouped` over those of many.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, BFloat16, Float32

from jentropy.pallas_kernels.resident import ResidentTensor

from .calls import call, spec
from .plan import TpuPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Operand:
    """An array of a weight, as kernels take it tile by tile.

    Attributes:
      array: [*stack, ...], whose last axes a block has.
      block: what a tile takes of a matrix's array.
      row, column: the axis of the block along which tiles lie that follow along K, and along N;
        None: one block serves all of them.
      scalars: the block is all that a matrix has, in scalar memory.
      own: the array is no part of the weight's stack: it has an entry for each matrix of the
        weight, and no axis for them if that is a single one.
    """

    array: Array
    block: tuple[int, ...]
    row: int | None = None
    column: int | None = None
    scalars: bool = False
    own: bool = False

    def tiles(self, count: int) -> tuple[int, ...]:
        """The block of so many tiles that follow along K."""
        return tuple(s * count if axis == self.row else s for axis, s in enumerate(self.block))

    def at(self, j: Any, k: Any) -> tuple[Any, ...]:
        """Indices of a block, of column tile j and row tile, or tiles, k."""
        where = {self.row: k, self.column: j}
        return tuple(where.get(axis, 0) for axis in range(len(self.block)))

    def tile(self, ref: Any, k: Any) -> Any:
        """Of a reference to the block of many tiles the part of one."""
        if self.row is None:
            return ref
        size = self.block[self.row]
        start = pl.multiple_of(k * size, size) if size > 1 else k
        return ref.at[(*(slice(None),) * self.row, pl.ds(start, size))]


class Tile(NamedTuple):
    """Which tile of its matrix.

    Attributes:
      j, k: along N, and along K.
      columns: tiles along N.
    """

    j: Any
    k: Any
    columns: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """How a layout multiplies by a tile.

    Attributes:
      name: of the layout's kernels, after what they do.
      operands: what it reads of the weight, by name.
      ordered: (x [M, K]) -> the same, its columns in the order in which tiles have rows; with
        several rows for each of x it is [M, rows, K].
      sides: (ordered x) -> arrays [steps, M, ...] with what rows of x are beside tiles along K, or
        [1, M, ...] of all.
      accumulators: float32 arrays [m, tile_n] that are kept over the tiles along K.
      add: (tile, x [m, ..., tile_k], sides, operands, accumulators), all of them references: adds
        the product of a tile.
      finish: (sides, operands, accumulators) -> float32 [m, tile_n], after the last tile along K.
    """

    name: str
    operands: Mapping[str, Operand]
    ordered: Callable[[Array], Array] = lambda x: x
    sides: Callable[[Array], Sequence[Array]] = lambda x: ()
    accumulators: int = 1
    add: Callable[..., None]
    finish: Callable[..., Array]


def kernel(*refs: Any, body: Body) -> None:
    """One tile of x [m, ..., tile_k] times a matrix; the last along K writes out [m, tile_n]."""
    operands = body.operands
    scalars = sum(operand.scalars for operand in operands.values())
    left: Any = iter(refs)
    prefetched: Any = iter([next(left) for _ in range(scalars)])
    x, *left = left
    left, accumulators = left[: -body.accumulators], left[-body.accumulators :]
    *left, out = left
    count = len(operands) - scalars
    blocks, sides = iter(left[:count]), [side.at[0] for side in left[count:]]
    taken = {n: next(prefetched if one.scalars else blocks) for n, one in operands.items()}
    k = pl.program_id(1)

    @pl.when(k == 0)
    def _() -> None:
        for accumulator in accumulators:
            accumulator[...] = jnp.zeros_like(accumulator)

    body.add(Tile(pl.program_id(0), k, pl.num_programs(0)), x, sides, taken, accumulators)

    @pl.when(k == pl.num_programs(1) - 1)
    def _() -> None:
        out[...] = body.finish(sides, taken, accumulators)


def multiply(
    x: BFloat16[Array, "M K"], weight: ResidentTensor, plan: TpuPlan, body: Body, interpret: Any
) -> Float32[Array, "M N"]:
    """Padded x times the padded packed matrix."""
    chex.assert_shape(x, (plan.m, plan.k))
    x = body.ordered(x)
    inputs: list[Any] = [x]
    between = x.shape[1:-1]
    place = (0,) * (1 + len(between))
    specs = [pl.BlockSpec((plan.m, *between, plan.tile_k), lambda j, k, *_: (*place, k))]
    scalars = []
    for operand in body.operands.values():
        if operand.scalars:
            scalars.append(_of_matrix(operand, weight))
            continue
        inputs.append(operand.array)
        if operand.own:
            specs.append(pl.BlockSpec(operand.block, lambda j, k, *_, at=operand.at: at(j, k)))
        else:
            specs.append(spec(weight, operand.block, operand.at))
    for side in body.sides(x):
        inputs.append(side)
        steps = side.shape[0] > 1
        rest = (0,) * (side.ndim - 1)
        specs.append(
            pl.BlockSpec(
                (1, *side.shape[1:]),
                lambda j, k, *_, steps=steps, rest=rest: (k if steps else 0, *rest),
            )
        )
    return call(
        partial(kernel, body=body),
        weight,
        *inputs,
        name=f"matmul_{body.name}",
        grid=plan.grid,
        in_specs=specs,
        out_spec=pl.BlockSpec((plan.m, plan.tile_n), lambda j, k, *_: (0, j)),
        out=jax.ShapeDtypeStruct((plan.m, plan.n), jnp.float32),
        scratch=[pltpu.VMEM((plan.m, plan.tile_n), jnp.float32)] * body.accumulators,
        scalars=scalars,
        vmem_bytes=plan.vmem_limit_bytes,
        interpret=interpret,
    )


def _of_matrix(operand: Operand, weight: ResidentTensor) -> Array:
    """An operand of a single matrix, out of its stack."""
    if operand.own or weight.index is None:
        return operand.array
    return jax.lax.dynamic_index_in_dim(operand.array, weight.index, keepdims=False)
