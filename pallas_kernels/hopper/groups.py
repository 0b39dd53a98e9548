"""Products of rows in groups on Hopper, each with a packed matrix of its own, in one kernel.

Rows are sorted by group, and are neither moved nor padded to tiles. A visit multiplies a window of
rows, which starts at a multiple of 8, by the matrix of one group, and writes what is of rows of
that group; there are as many visits as groups with rows need. Tiles of the matrices of all visits
are dealt to blocks of threads as those of one matrix are: whole in rounds, and what is left over in
equal pieces of one line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Int32

from jentropy.pallas_kernels import bf16, targets
from jentropy.pallas_kernels.fused import Product
from jentropy.pallas_kernels.resident import ResidentTensor
from jentropy.pallas_kernels.tiles import ceil_to

from . import parts, stream
from .plan import ROWS, HopperPlan
from .stream import Kernel, Operands, Source

ROOM = 2  # times the mean of the rows of a group has a window: most groups need one
LEAST_WINDOW = 2 * ROWS  # that few rows fit into, wherever they begin


@dataclass(frozen=True, slots=True, kw_only=True)
class Visits:
    """Deals the tiles of all visits, as a plan does those of one matrix.

    Attributes:
      steps: of a tile.
      blocks: of threads.
      tiles: int32, of all visits.
      whole: none is cut.
    """

    steps: int
    blocks: int
    tiles: Any
    whole: bool

    @property
    def dealt(self) -> Any:
        """Tiles that are dealt in rounds; they come first."""
        blocks = np.int32(self.blocks)
        return self.tiles if self.whole else lax.div(self.tiles, blocks) * blocks

    @property
    def line(self) -> Any:
        """Steps of the other tiles."""
        return (self.tiles - self.dealt) * np.int32(self.steps)

    @property
    def dealers(self) -> Any:
        """Blocks of threads that the line is dealt to."""
        return jnp.clip(self.line, np.int32(1), np.int32(self.blocks))

    def rounds_of(self, block: Any) -> Any:
        """Whole tiles that a block of threads gets."""
        blocks = np.int32(self.blocks)
        return lax.div(self.dealt - block + (blocks - 1), blocks)

    def first_of(self, block: Any) -> Any:
        """Where in the line a block of threads begins."""
        return lax.div(jnp.minimum(block, self.dealers) * self.line, self.dealers)

    def block_of(self, step: Any) -> Any:
        """The block of threads that takes a step of the line."""
        return lax.div((step + 1) * self.dealers - 1, jnp.maximum(self.line, np.int32(1)))


def window_of(rows: int, groups: int, most: int) -> int:
    """Rows of a window.

    Args:
      rows: of x, a multiple of 8.
      groups: matrices.
      most: rows of a pass over a matrix.
    """
    size = min(LEAST_WINDOW, rows, most)
    while size < min(ROOM * rows / groups, rows, most):
        size *= 2
    return min(size, rows, most)


# Rows of the table of visits.
PLACE, START, LOW, HIGH = range(4)


def visits_of(
    sizes: Int[Array, " groups"], places: Int[Array, " groups"], rows: int, window: int
) -> tuple[Int32[Array, " 1"], Int32[Array, "4 visits"]]:
    """How many visits there are, and what they are of.

    Args:
      sizes: rows of groups, which follow each other.
      places: of matrices in their stack.
      rows: of x, a multiple of 8.
      window: rows of a visit.

    Returns:
      Of each visit the place of its matrix, the first row of its window, and the rows that it
      writes, from which to which.
    """
    groups = sizes.size
    begin, end = sums_of(sizes) - sizes, sums_of(sizes)
    base = begin // ROWS * ROWS
    counts = jnp.where(end > begin, -((base - end) // window), 0)
    until = sums_of(counts)
    most = min(groups, rows) + (rows + (ROWS - 1) * min(groups, rows)) // window
    number = jnp.arange(most, dtype=jnp.int32)
    group = jnp.minimum((until[:, None] <= number[None]).sum(0, dtype=jnp.int32), groups - 1)
    first = base[group] + (number - until[group] + counts[group]) * window
    low, high = jnp.maximum(first, begin[group]), jnp.minimum(first + window, end[group])
    table = (places[group], jnp.minimum(first, rows - window), low, high)
    return until[-1:], jnp.stack([a.astype(jnp.int32) for a in table])


def sums_of(numbers: Int[Array, " groups"]) -> Int32[Array, " groups"]:
    """Of each number and those before it: one small kernel, where a scan would take several."""
    place = jnp.arange(numbers.size, dtype=jnp.int32)
    before = place[None] <= place[:, None]
    return jnp.where(before, numbers.astype(jnp.int32)[None], 0).sum(1, dtype=jnp.int32)


def plan(
    weight: ResidentTensor,
    rows: int,
    target: targets.Gpu | None = None,
    *,
    plan_of: Callable[..., HopperPlan],
) -> HopperPlan:
    """How a visit to a matrix of a stack runs, of so many rows in all groups."""
    most = plan_of(weight, 1, target).traits.most_rows
    window = window_of(ceil_to(rows, ROWS), weight.shape[0], most)
    return plan_of(weight, window, target)


def multiply(
    x: Float[Array, "M K"],
    weight: ResidentTensor,
    sizes: Int[Array, " groups"],
    product: Product,
    *,
    plan_of: Callable[..., HopperPlan],
    source_of: Callable[[ResidentTensor, HopperPlan, Product], Source],
) -> Float[Array, "M N"] | None:
    """x times the matrix of each row's group; 0 in rows of none.

    Args:
      weight: a stack.
      plan_of: of rows with one matrix.
      source_of: a matrix's.

    Returns:
      None where dense matrices are faster, or one of them does not fit.
    """
    rows, n = x.shape[0], weight.extent[0]
    if not rows or not sizes.size:
        return jnp.zeros((rows, n), product.out_dtype)
    count = bf16.PARTS if product.full_precision and x.dtype == jnp.float32 else 1
    padded = ceil_to(rows * count, ROWS)
    visit = plan(weight, padded, plan_of=plan_of)
    if not visit.fused or not plan_of(weight, -(-padded // sizes.size)).few:
        return None
    if count > 1:  # below each other: the weights are read once for all
        x = jnp.stack(bf16.parts(x, count), axis=1).reshape(rows * count, -1)
    x = x.astype(jnp.bfloat16)
    most_rows, columns = visit.x_shape(*x.shape, interpret=bool(product.interpret))
    more = 0 if most_rows == x.shape[0] else padded - x.shape[0]
    x = jnp.pad(x, ((0, more), (0, columns - x.shape[1])))
    within = product if count == 1 else replace(product, out_dtype=np.dtype(np.float32))
    y = _visited(x, weight, sizes * count, source_of(weight, visit, within), visit, within)
    y = y[: rows * count, :n]
    y = y if count == 1 else y.reshape(rows, count, n).sum(1)
    inside = jnp.arange(rows, dtype=jnp.int32) < sizes.sum(dtype=jnp.int32)
    return jnp.where(inside[:, None], y, 0).astype(product.out_dtype)


def _visited(
    x: Array,
    weight: ResidentTensor,
    sizes: Array,
    source: Source,
    plan: HopperPlan,
    product: Product,
) -> Float[Array, "rows N"]:
    """Of x as it is read; rows of no group are anything."""
    rows = x.shape[0]
    places = weight.which() or [jnp.arange(sizes.size, dtype=jnp.int32)]
    count, table = visits_of(sizes, places[0], ceil_to(rows, ROWS), plan.m)
    blocks = min(targets.current_gpu().multiprocessors, table.shape[1] * plan.tiles * plan.steps)
    whole = replace(plan, config=replace(plan.config, rounds=plan.tiles), blocks=blocks)
    kernel = Grouped(source=source, plan=whole, interpreted=bool(product.interpret))
    columns = plan.n if product.interpret else plan.result[1]
    outs = [jax.ShapeDtypeStruct((rows, columns), product.out_dtype)]
    operands = [count, table, x, *source.arrays, *source.rows]
    if kernel.counts:
        operands, outs = [parts.counts(whole), *operands], [*outs, parts.memory(whole)]
    return stream.call(kernel, outs, product.interpret)(*operands)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grouped(Kernel):
    """The kernel of all visits."""

    @property
    def is_stacked(self) -> bool:
        """Arrays have an axis of matrices before."""
        return True

    @property
    def counts(self) -> bool:
        """Parts of tiles are added within; interpreted none is cut."""
        return not self.interpreted

    def body(self, *refs: Any, **scratch: Any) -> None:
        """One block of threads."""
        left = list(refs)
        memory: tuple[Any, ...] = ()
        if self.counts:
            counts = left.pop(0)
            memory = left.pop(), counts
        count, table, x, *inputs, out = left
        arrays, tiles = len(self.source.arrays), np.int32(self.plan.tiles)

        def operands_of(tile: Any) -> Operands:
            visit = lax.div(tile, tiles)
            of = [ref.at[table[PLACE, visit]] for ref in inputs]
            window = table[START, visit], table[LOW, visit], table[HIGH, visit]
            return Operands(x, of[:arrays], of[arrays:], out, lax.rem(tile, tiles), window)

        deal = Visits(
            steps=self.plan.steps,
            blocks=self.plan.blocks,
            tiles=count[0] * tiles,
            whole=self.interpreted,
        )
        self.run(deal, operands_of, memory, **scratch)
