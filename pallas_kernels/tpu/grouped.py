"""Products of rows in groups, each with a packed matrix of its own, in one kernel.

Rows are sorted by group, and are neither moved nor padded to tiles: all of them, or `chunk` at a
time, lie in VMEM beside the results of a column tile. A visit multiplies by a column tile of one
matrix a window of `m` rows that starts at a whole register, or, of fewer rows than it has, at a
multiple of them, and keeps what is of rows of its group.
Visits follow each other by group, inside of a column tile: the weights of a group stay where they
are from one window to the next, so that they are read once for all rows of a chunk, and those of a
group without rows never. The grid has as many visits as there are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Float32, Int, Int32

from jentropy.pallas_kernels import bf16
from jentropy.pallas_kernels.fused import Product
from jentropy.pallas_kernels.resident import ResidentTensor
from jentropy.pallas_kernels.tiles import SUBLANES, ceil_to

from .calls import interpret_params
from .plan import BUFFERS, LEAST_VMEM, MOST_ROWS, ROWS, TpuPlan
from .products import Body, Operand, Tile

MOST_CHUNK = 1024  # rows
ROOM = 2  # times the mean of the rows of a group has a window: most groups need one
SHARE = 4  # a block of weights takes this part of VMEM at the most
MOST_WEIGHTS = 16 << 20  # of a tile: each makes the program longer
UNROLLED = 8 << 20  # weights of tiles along K without a loop; twice that where none divides them
VISIT = 400  # cycles of a visit beside its weights: places of blocks, the MXU's last results


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedPlan:
    """How rows in groups are multiplied.

    Attributes:
      tile: of a visit.
      chunk: rows that are in VMEM at a time.
      chunks: of all rows.
      depth: tiles along K of a block of weights.
      vmem_limit_bytes: that the compiler may take.
    """

    tile: TpuPlan
    chunk: int
    chunks: int
    depth: int
    vmem_limit_bytes: int

    @property
    def rows(self) -> int:
        """Of all chunks."""
        return self.chunk * self.chunks

    @property
    def unit(self) -> int:
        """Rows that windows start at multiples of."""
        return min(self.tile.m, ROWS)

    @property
    def steps(self) -> int:
        """Tiles along K."""
        return self.tile.k // self.tile.tile_k

    @property
    def together(self) -> int:
        """Tiles of a block that follow each other without a loop, which each waits for the MXU."""
        most = max(1, UNROLLED // (self.tile.tile_k * self.tile.tile_n))
        best = max(d for d in range(1, most + 1) if self.depth % d == 0)
        return self.depth if best == 1 and self.depth <= 2 * most else best


def make_plan(
    tile: TpuPlan,
    rows: int,
    groups: int,
    *,
    bits_per_weight: float,
    unit: int,
    accumulators: int,
    least: int = ROWS,
    spread: int = 1,
) -> GroupedPlan:
    """Plans a product.

    Args:
      tile: the plan of a product with one matrix.
      rows: of x, all parts of a full-precision one counted.
      groups: matrices.
      bits_per_weight: of blocks.
      unit: columns of a tile are a multiple of it; no fewer than the tile has: they are all of
        them.
      accumulators: float32 arrays of [m, tile_n].
      least: rows of the smallest window.
      spread: rows of the kernel's left operand for each of x.
    """
    of_tile = partial(_make_plan, tile, rows, groups, bits_per_weight, accumulators, least, spread)
    if unit >= tile.tile_n:
        return of_tile(tile.tile_n)
    bytes_of = tile.k * bits_per_weight / 8
    fits = min(int(tile.target.vmem_bytes / SHARE / bytes_of), MOST_WEIGHTS // tile.tile_k)
    fewest = -(-tile.n // max(unit, fits // unit * unit))
    counts = range(fewest, max(fewest, -(-tile.n // unit)) + 1)
    widths = {min(ceil_to(-(-tile.n // count), unit), tile.n) for count in counts}
    active = max(1, min(groups, rows))
    read = tile.target.hbm_cycles(active * tile.n * bytes_of)

    def cycles(plan: GroupedPlan) -> float:
        """Reading, visits, and the first block, for which nothing is done."""
        again = plan.chunks - 1  # groups in two chunks, at the most
        visits = -(-tile.n // plan.tile.tile_n) * (active + again)
        return read * (1 + again / active + 1 / visits) + VISIT * visits

    return min((of_tile(width) for width in sorted(widths)), key=cycles)


def _make_plan(
    tile: TpuPlan,
    rows: int,
    groups: int,
    bits_per_weight: float,
    accumulators: int,
    least: int,
    spread: int,
    tile_n: int,
) -> GroupedPlan:
    """The plan with tiles of so many columns."""
    vmem, k = tile.target.vmem_bytes, tile.k
    steps = k // tile.tile_k
    per_column = int(tile.tile_k * bits_per_weight / 8)
    depth = max(
        d
        for d in range(1, steps + 1)
        if d == 1 or (steps % d == 0 and d * per_column * tile_n <= vmem // SHARE)
    )
    wanted = ceil_to(max(rows, 1), ROWS)
    m = least
    while m < min(ROOM * rows / max(groups, 1), MOST_ROWS, wanted):
        m *= 2
    # Unpacked tiles live in VMEM too where they do not fit in registers.
    fixed = BUFFERS * depth * per_column * tile_n + 2 * tile.tile_k * tile_n
    fixed += accumulators * m * tile_n * 4
    per_row = BUFFERS * (2 * k * spread + 4 * tile_n)
    most = (vmem - fixed) // per_row // 2 // ROWS * ROWS
    most = max(m, ROWS, min(most, MOST_CHUNK))
    chunks = -(-wanted // most)
    chunk = max(m, ceil_to(-(-wanted // chunks), ROWS))
    used = fixed + chunk * per_row
    return GroupedPlan(
        tile=replace(tile, m=m, tile_n=tile_n),
        chunk=chunk,
        chunks=chunks,
        depth=depth,
        vmem_limit_bytes=min(max(LEAST_VMEM, 2 * used), vmem),
    )


# Rows of the table of visits.
PLACE, MATRIX, CHUNK, START, LOW, HIGH = range(6)


def visits_of(
    ends: Int[Array, " groups"], places: Int[Array, " groups"], plan: GroupedPlan
) -> tuple[Int32[Array, "6 visits"], Int32[Array, ""]]:
    """Visits in their order, and how many there are, one at the least.

    Args:
      ends: of groups, whose rows follow each other.
      places: of matrices in their stack.

    Returns:
      For each visit the place of its matrix in the stack and among the groups, its chunk, the first
      row of its window in the chunk, and rows that it keeps, from which to which in the window.
    """
    m, groups = plan.tile.m, ends.shape[0]
    first = jnp.arange(plan.chunks, dtype=jnp.int32)[:, None] * plan.chunk
    edges = jnp.clip(jnp.concatenate((jnp.zeros_like(ends[:1]), ends)) - first, 0, plan.chunk)
    begin, end = edges[:, :-1].reshape(-1), edges[:, 1:].reshape(-1)  # of pieces, chunk by chunk
    base = begin // plan.unit * plan.unit
    counts = jnp.where(end > begin, -(-(end - base) // m), 0)
    until = jnp.cumsum(counts, dtype=jnp.int32)
    pieces = min(groups, plan.rows) + plan.chunks - 1
    most = max(1, pieces + (plan.rows + (plan.unit - 1) * pieces) // m)
    number = jnp.arange(most, dtype=jnp.int32)
    piece = jnp.minimum((until[:, None] <= number).sum(0, dtype=jnp.int32), counts.size - 1)
    window = base[piece] + (number - until[piece] + counts[piece]) * m
    start = jnp.minimum(window, plan.chunk - m)
    low = jnp.maximum(window, begin[piece]) - start
    high = jnp.minimum(window + m, end[piece]) - start
    matrix = piece % groups
    table = (places[matrix], matrix, piece // groups, start, low, high)
    return jnp.stack(table).astype(jnp.int32), jnp.maximum(until[-1], 1)


def kernel(visits: Any, x: Any, *refs: Any, body: Body, plan: GroupedPlan) -> None:
    """One visit, of `depth` tiles along K; the last of them writes rows of out [chunk, tile_n]."""
    *left, out = refs[: -body.accumulators]
    accumulators = refs[-body.accumulators :]
    taken, sides = dict(zip(body.operands, left, strict=False)), left[len(body.operands) :]
    j, v, block = (pl.program_id(axis) for axis in range(3))
    m, blocks_along = plan.tile.m, plan.steps // plan.depth
    start = visits[START, v]
    window = pl.ds(pl.multiple_of(start, plan.unit), m)

    def beside(side: Any, k: Any) -> Any:
        return side.at[k if side.shape[0] > 1 else 0, window]

    def at_edge(edge: int, run: Callable[[], None]) -> None:
        if blocks_along == 1:
            run()
        else:
            pl.when(block == edge)(run)

    def begin() -> None:
        for accumulator in accumulators:
            accumulator[...] = jnp.zeros_like(accumulator)

    def tiles(within: Any) -> dict[str, Any]:
        return {n: o.tile(taken[n], within) for n, o in body.operands.items()}

    def step(within: Any) -> None:
        k = block * plan.depth + within
        given = [beside(side, k) for side in sides]
        tile = Tile(j, k, pl.num_programs(0))
        body.add(tile, x.at[k, window], given, tiles(within), accumulators)

    def end() -> None:
        y = body.finish([beside(side, 0) for side in sides], tiles(0), accumulators)
        register, skipped = window, 0
        if m < SUBLANES:  # one of the windows that a register of results has
            skipped = lax.rem(start, jnp.int32(SUBLANES))
            register = pl.ds(pl.multiple_of(start - skipped, SUBLANES), SUBLANES)
            y = jnp.concatenate([y] * (SUBLANES // m), axis=0)
        row = lax.broadcasted_iota(jnp.int32, y.shape, 0) - skipped
        own = (row >= visits[LOW, v]) & (row < visits[HIGH, v])
        out[register, :] = jnp.where(own, y, out[register, :])

    at_edge(0, begin)
    if plan.together == plan.depth:
        for within in range(plan.depth):
            step(within)
    else:

        @pl.loop(np.int32(0), np.int32(plan.depth), step=np.int32(plan.together))
        def _(first: Any) -> None:
            for within in range(plan.together):
                step(first + within)

    at_edge(blocks_along - 1, end)


def multiply(
    x: Float[Array, "M K"],
    weight: ResidentTensor,
    sizes: Int[Array, " groups"],
    product: Product,
    *,
    plan_of: Callable[[ResidentTensor, int], GroupedPlan],
    body_of: Callable[[ResidentTensor, TpuPlan], Body],
) -> Float[Array, "M N"]:
    """The products of all groups; 0 in rows of none.

    Args:
      plan_of: (weight, rows) -> the plan.
      body_of: (weight, plan of a tile) -> how tiles are multiplied.
    """
    count = bf16.PARTS if product.full_precision and x.dtype == jnp.float32 else 1
    plan = plan_of(weight, x.shape[0] * count)
    return _planned(x, weight, sizes, product=product, plan=plan, count=count, body_of=body_of)


@partial(jax.jit, static_argnames=("product", "plan", "count", "body_of"))
def _planned(
    x: Array,
    weight: ResidentTensor,
    sizes: Array,
    *,
    product: Product,
    plan: GroupedPlan,
    count: int,
    body_of: Callable[[ResidentTensor, TpuPlan], Body],
) -> Array:
    rows, n = x.shape[0], weight.extent[1]
    ends = jnp.cumsum(sizes, dtype=jnp.int32)
    if count > 1:  # beside each other: the weights are read once for all
        x = jnp.stack(bf16.parts(x, count), axis=1).reshape(rows * count, -1)
    tile = plan.tile
    x = x.astype(jnp.bfloat16)
    x = jnp.pad(x, ((0, plan.rows - x.shape[0]), (0, tile.k - x.shape[1])))
    body = body_of(weight, tile)
    y = _visited(body.ordered(x), weight, ends * count, plan, body, product.interpret)
    y = y[: rows * count, :n]
    y = y if count == 1 else y.reshape(rows, count, n).sum(1)
    inside = jnp.arange(rows, dtype=jnp.int32) < ends[-1]
    return jnp.where(inside[:, None], y, 0).astype(product.out_dtype)


def _visited(
    x: Array,
    weight: ResidentTensor,
    ends: Int[Array, " groups"],
    plan: GroupedPlan,
    body: Body,
    interpret: Any,
) -> Float32[Array, "rows N"]:
    """Padded x; rows of no group are anything."""
    tile, groups = plan.tile, ends.shape[0]
    places = weight.which()
    table, count = visits_of(ends, places[0] if places else jnp.arange(groups), plan)
    parts = x.reshape(*x.shape[:-1], plan.steps, tile.tile_k)
    sides = [jnp.moveaxis(parts, -2, 0), *body.sides(x)]
    return pl.pallas_call(
        partial(kernel, body=body, plan=plan),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(-(-tile.n // tile.tile_n), count, plan.steps // plan.depth),
            in_specs=[_rows(sides[0], plan)]
            + [_block(operand, plan.depth) for operand in body.operands.values()]
            + [_rows(side, plan) for side in sides[1:]],
            out_specs=pl.BlockSpec(
                (plan.chunk, tile.tile_n), lambda j, v, b, visits: (visits[CHUNK, v], j)
            ),
            scratch_shapes=[pltpu.VMEM((tile.m, tile.tile_n), jnp.float32)] * body.accumulators,
        ),
        out_shape=jax.ShapeDtypeStruct((plan.rows, tile.n), jnp.float32),
        name=f"grouped_{body.name}",
        interpret=interpret_params(interpret),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=plan.vmem_limit_bytes,
        ),
    )(table, sides[0], *(operand.array for operand in body.operands.values()), *sides[1:])


def _rows(side: Array, plan: GroupedPlan) -> pl.BlockSpec:
    """A chunk of what rows have."""
    block, rest = (side.shape[0], plan.chunk, *side.shape[2:]), (0,) * (side.ndim - 2)
    return pl.BlockSpec(block, lambda j, v, b, visits: (0, visits[CHUNK, v], *rest))


def _block(operand: Operand, depth: int) -> pl.BlockSpec:
    """A block of the matrix of a visit."""
    which = MATRIX if operand.own else PLACE
    options: dict[str, Any] = {"memory_space": pltpu.SMEM} if operand.scalars else {}
    return pl.BlockSpec(
        (None, *operand.tiles(depth)),
        lambda j, v, b, visits: (visits[which, v], *operand.at(j, b)),
        **options,
    )
