"""The loop of products on Hopper that every format shares: copies, steps, parts of tiles.

A block of threads is three warpgroups. The last one asks the copy engine for the weights and x of
one step after the other, as many ahead as there are stages; the first two decode 64 rows each, or
twice 64, in registers, in WGMMA's order, and multiply them with x from shared memory. A format says
how: see `Source`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, BFloat16, Float

from . import fragments, mosaic, parts, registers
from .plan import ROWS, WARPGROUPS, HopperPlan

COPIER = WARPGROUPS  # the warpgroup that copies
COPIER_REGISTERS, MULTIPLIER_REGISTERS = 40, 232  # three warpgroups have 168 each to begin with
# x has tiles of 8 x 16, so that any 16 columns can be multiplied alone.
X_TRANSFORMS = (plgpu.TilingTransform((8, fragments.COLUMNS)), plgpu.SwizzleTransform(32))


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """How the weights of a format become fragments.

    Attributes:
      arrays: [row blocks of 64, column units, ...], copied to shared memory step by step.
      columns: of a unit of each.
      rows: arrays [N], read where a tile begins.
      which: int32[1]: all of these have another axis before, of which this matrix is one; or none.
      begin: (load_rows) -> state of a tile; `load_rows(i)` is array i, a number for each row of a
        block [64].
      prepare: (state, load) -> state of a step; `load(i, index, layout)` reads array i in shared
        memory.
      words: (load, b) -> what block b of a step is made of, in registers.
      ahead: words are asked for before the products of the block before are waited for: as the loop
        model says, that pays where scales are multiplied in, and costs where registers are short.
      block: (state, words, b) -> bfloat16[64, columns], one after the other: block b of a step, in
        pieces of as many columns as a group has, if those are fewer than 64.
      group: columns whose sum has a scale of its own, in float32; 0: all sums go into one.
      scale: (state, g) -> float32, or float32[64]: of group g of a step.
      patch: (load, step_columns, multiply), after the blocks of a step: `multiply(a, column)` adds
        the product of bfloat16[64, 16] with x from a column of the step on.
      finish: (state of the tile, float32[64, M]) -> what a tile adds to the product.
      name: of the kernel.
    """

    arrays: Sequence[jax.Array]
    columns: Sequence[int]
    rows: Sequence[jax.Array]
    which: Sequence[jax.Array]
    begin: Callable[..., Any]
    prepare: Callable[[Any, Any], Any] = lambda state, load: state
    words: Callable[..., Any]
    block: Callable[..., Sequence[Array]]
    ahead: bool = False
    group: int = 0
    scale: Callable[..., Array] | None = None
    patch: Callable[..., None] | None = None
    finish: Callable[[Any, Array], Array] | None = None
    name: str


@dataclass(frozen=True, slots=True)
class Step:
    """What a warpgroup multiplies in a step, in shared memory.

    Attributes:
      interpreted: by the interpreter.
      stage, row_block: of the arrays.
      x, weights: arrays of all stages.
      staging: see `registers.multiply`.
    """

    interpreted: bool
    stage: Any
    row_block: Any
    x: Any
    weights: Any
    staging: Any

    def load(self, i: int, index: tuple[Any, ...], layout: Any = None) -> Any:
        """Part of array i: in registers of a layout, or a number."""
        index = (self.stage, self.row_block, *index)
        if layout is None:
            return self.weights[i][index]
        return registers.load(self.weights[i], index, layout, interpret=self.interpreted)

    def multiply(self, acc: Any, a: Array, column: Any) -> None:
        """Adds the product with x from a column of the step on."""
        if not isinstance(column, int):
            column = pl.multiple_of(column, fragments.COLUMNS)
            columns: Any = pl.ds(column, a.shape[1])
        else:
            columns = slice(column, column + a.shape[1])
        registers.multiply(acc, a, self.x, (self.stage, slice(None), columns), self.staging)


@dataclass(frozen=True, slots=True)
class Operands:
    """What a tile of a product is made of: whole arrays, on the device.

    Attributes:
      x: [rows, K].
      weights, rows: of the matrix, see `Source`.
      out: [rows, N].
      tile: of the matrix's rows.
      window: int32 scalars: the first of the M rows of x, a multiple of 8, and which rows of `out`
        are written, from which to which; None: x and `out` have M rows, or fewer.
    """

    x: Any
    weights: Sequence[Any]
    rows: Sequence[Any]
    out: Any
    tile: Any
    window: tuple[Any, Any, Any] | None = None

    def x_of(self, rows: int, columns: Any) -> Any:
        """Columns of x."""
        if self.window is not None:
            return self.x.at[pl.ds(pl.multiple_of(self.window[0], ROWS), rows), columns]
        if self.x.shape[0] == rows:
            return self.x.at[:, columns]
        # Pallas lets a slice end beyond an array only if it cannot tell where it begins.
        return self.x.at[pl.ds(lax.axis_index("block") * 0, rows), columns]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """The kernel of a plan."""

    source: Source
    plan: HopperPlan
    interpreted: bool

    def scratch(self) -> dict[str, Any]:
        """Shared memory and barriers, a stage each."""
        plan, stages = self.plan, self.plan.config.stages
        blocks = [
            plgpu.SMEM((stages, *self._block_shape(i)), array.dtype)
            for i, array in enumerate(self.source.arrays)
        ]
        return {
            "x_s": plgpu.SMEM(
                (stages, plan.m, plan.config.tile_k), jnp.bfloat16, transforms=X_TRANSFORMS
            ),
            "w_s": blocks,
            "full": plgpu.Barrier(num_arrivals=1 + len(blocks), num_barriers=stages),
            "empty": plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=stages),
            "staging": registers.staging(plan.m) if self.interpreted else {},
        }

    def _block_shape(self, i: int) -> tuple[int, ...]:
        units = self.plan.config.tile_k // self.source.columns[i]
        leading = 2 + self.is_stacked
        row_blocks = WARPGROUPS * self.plan.config.height
        return (row_blocks, units, *self.source.arrays[i].shape[leading:])

    @property
    def is_stacked(self) -> bool:
        """Whether arrays have an axis of matrices before."""
        return bool(self.source.which)

    @property
    def counts(self) -> bool:
        """Whether parts of tiles are added within: the first operand counts them then."""
        return self.plan.parts > 1 and not self.interpreted

    def body(self, *refs: Any, **scratch: Any) -> None:
        """One block of threads."""
        left, count = list(refs), len(self.source.arrays)
        memory: tuple[Any, ...] = ()
        if self.counts:
            counts = left.pop(0)
            memory = left.pop(), counts
        elif self.interpreted:
            memory = (left.pop(),)
        x, out = left.pop(0), left.pop()
        if self.source.which:
            which = left.pop(0)
            left = [ref.at[which[0]] for ref in left]
        of = partial(Operands, x, left[:count], left[count:], out)
        self.run(self.plan, of, memory, **scratch)

    def run(
        self, deal: Any, operands_of: Callable[[Any], Operands], outs: Sequence[Any], **scratch: Any
    ) -> None:
        """Copies in one warpgroup, multiplies in the others.

        Args:
          deal: the plan, or what deals tiles as one does.
          operands_of: of a tile.
          outs: memory that parts need.
        """
        warpgroup = lax.axis_index("warpgroup")

        @pl.when(warpgroup == COPIER)
        def _() -> None:
            plgpu.set_max_registers(COPIER_REGISTERS, action="decrease")
            self._copy(deal, operands_of, **scratch)

        @pl.when(warpgroup < COPIER)
        def _() -> None:
            plgpu.set_max_registers(MULTIPLIER_REGISTERS, action="increase")
            self._multiply(deal, operands_of, outs, warpgroup=warpgroup, **scratch)

    def _copy(
        self,
        plan: Any,
        operands_of: Any,
        *,
        x_s: Any,
        w_s: Any,
        full: Any,
        empty: Any,
        staging: Any,
    ) -> None:
        """Fills stages, each when it is empty again."""
        del staging
        config, block = self.plan.config, lax.axis_index("block")
        stages, steps = np.int32(config.stages), np.int32(plan.steps)
        dealt = plan.rounds_of(block) * steps
        first = plan.first_of(block)

        def issue(i: Any, nothing: None) -> None:
            stage, step = lax.rem(i, stages), first + i - dealt

            @pl.when(i >= config.stages)
            def _() -> None:
                plgpu.barrier_wait(empty.at[stage])

            is_dealt = i < dealt
            tile = jnp.where(
                is_dealt,
                lax.div(i, steps) * plan.blocks + block,
                plan.dealt + lax.div(step, steps),
            )
            k = lax.rem(jnp.where(is_dealt, i, step), steps)
            operands = operands_of(tile)
            for j, (array, target) in enumerate(zip(operands.weights, w_s, strict=True)):
                high, wide = self._block_shape(j)[:2]
                step = array.at[pl.ds(operands.tile * high, high), pl.ds(k * wide, wide)]
                plgpu.copy_gmem_to_smem(step, target.at[stage], full.at[stage])
            step_of_x = operands.x_of(self.plan.m, pl.ds(k * config.tile_k, config.tile_k))
            plgpu.copy_gmem_to_smem(step_of_x, x_s.at[stage], full.at[stage])

        count = dealt + plan.first_of(block + 1) - first
        lax.fori_loop(np.int32(0), count, issue, None)

        def drain(i: Any, _: Any) -> None:
            plgpu.barrier_wait(empty.at[lax.rem(i, stages)])

        # A barrier must not go away before all have arrived.
        lax.fori_loop(jnp.maximum(count, stages), count + stages, drain, None)

    def _multiply(
        self,
        plan: Any,
        operands_of: Any,
        outs: Any,
        *,
        warpgroup: Any,
        x_s: Any,
        w_s: Any,
        full: Any,
        empty: Any,
        staging: Any,
    ) -> None:
        """Multiplies one warpgroup's rows of every tile that this block of threads has steps of."""
        source, block = self.source, lax.axis_index("block")
        stages, steps = np.int32(self.plan.config.stages), np.int32(plan.steps)
        height = self.plan.config.height
        row_blocks = [warpgroup * height + h for h in range(height)]  # of a tile

        def staged(i: Any, of_step: Callable[[Sequence[Step]], Any]) -> Any:
            stage = lax.rem(i, stages)
            plgpu.barrier_wait(full.at[stage])
            staging_of = (staging, warpgroup) if self.interpreted else None
            made = of_step(
                [Step(self.interpreted, stage, b, x_s, w_s, staging_of) for b in row_blocks]
            )
            plgpu.commit_smem()  # reads come before what the copy engine writes next
            plgpu.barrier_arrive(empty.at[stage])
            return made

        def of_tile(tile: Any, start: Any, stop: Any, part: Any) -> None:
            operands = operands_of(tile)
            rows = [operands.tile * self.plan.tile_n + b * fragments.ROWS for b in row_blocks]
            load_rows = partial(registers.load_rows, interpret=self.interpreted)
            states = [source.begin(lambda i, r=r: load_rows(operands.rows[i], r)) for r in rows]
            sums = self._sum_of_groups if source.group else self._sum
            products = sums(start, stop, states, staged)
            for of in zip(row_blocks, rows, states, products, strict=True):
                finish(operands, tile, part, *of)

        def finish(
            operands: Operands,
            tile: Any,
            part: Any,
            row_block: Any,
            row: Any,
            state: Any,
            sum_: Any,
        ) -> None:
            product = sum_ if source.finish is None else source.finish(state, sum_)
            put = partial(registers.store_transposed, interpret=self.interpreted)

            def store(product: Array) -> None:
                put(operands.out, row, product.astype(operands.out.dtype), operands.window)

            if self.counts:
                self._add(plan, tile, part, row_block, product, outs, store)
            elif self.plan.parts == 1:
                store(product)
            else:
                pl.when(part == 0)(partial(store, product))

                @pl.when(part > 0)
                def _() -> None:
                    put(outs[0].at[part - 1], row - plan.dealt * plan.tile_n, product, None)

        rounds, first, last = (
            plan.rounds_of(block),
            plan.first_of(block),
            plan.first_of(block + 1),
        )
        dealt = rounds * steps

        def one(q: Any, _: Any) -> None:
            is_dealt = q < rounds
            tile = lax.div(first, steps) + q - rounds  # of the line
            start = jnp.maximum(first, tile * steps)
            stop = jnp.minimum(last, (tile + 1) * steps)
            of_tile(
                jnp.where(is_dealt, q * plan.blocks + block, plan.dealt + tile),
                jnp.where(is_dealt, q * steps, dealt + start - first),
                jnp.where(is_dealt, (q + 1) * steps, dealt + stop - first),
                jnp.where(is_dealt, 0, block - plan.block_of(tile * steps)),
            )

        cut = jnp.where(first < last, (last - 1) // steps - first // steps + 1, 0)
        lax.fori_loop(np.int32(0), rounds + cut, one, None)

    def _add(
        self, plan: Any, tile: Any, part: Any, row_block: Any, product: Array, outs: Any, store: Any
    ) -> None:
        """Stores the product of a whole tile, or the sum if this is the last part of one."""
        memory, counts = outs
        start = (tile - plan.dealt) * plan.steps
        first = plan.block_of(start)
        count = plan.block_of(start + plan.steps - 1) - first + 1
        is_whole = (tile < plan.dealt) | (count == 1)
        pl.when(is_whole)(partial(store, product))

        @pl.when(~is_whole)
        def _() -> None:
            parts.add(product, first, part, count, row_block, counts, memory, store)

    def _sum(self, start: Any, stop: Any, states: Sequence[Any], staged: Any) -> Sequence[Array]:
        """Of all steps, in one accumulator for each block of rows."""
        source, config = self.source, self.plan.config
        blocks = range(config.tile_k // fragments.BLOCK)
        order = list(itertools.product(blocks, range(config.height)))

        def accumulate(*accs: Any) -> Sequence[Array]:
            def add(steps: Sequence[Step]) -> None:
                ready = [
                    source.prepare(state, step.load)
                    for state, step in zip(states, steps, strict=True)
                ]
                following: Any = None
                for i, (b, h) in enumerate(order):
                    words = source.words(steps[h].load, b) if following is None else following
                    if source.ahead and i + 1 < len(order):
                        next_b, next_h = order[i + 1]
                        following = source.words(steps[next_h].load, next_b)
                    column = b * fragments.BLOCK
                    for a in source.block(ready[h], words, b):
                        steps[h].multiply(accs[h], a, column)
                        column += a.shape[1]
                    if not self.interpreted and i + 1 < len(order):
                        plgpu.wgmma_wait(1)  # registers of the block before are free again
                for step, acc in zip(steps, accs, strict=True):
                    if source.patch is not None:
                        source.patch(step.load, config.tile_k, partial(step.multiply, acc))
                plgpu.wgmma_wait(0)

            lax.fori_loop(start, stop, lambda i, _: staged(i, add), None)
            return [acc[...] for acc in accs]

        return pl.run_scoped(accumulate, *[self._accumulator()] * config.height)

    def _sum_of_groups(
        self, start: Any, stop: Any, states: Sequence[Any], staged: Any
    ) -> Sequence[Array]:
        """Of all steps, each group's sum scaled; during products the next weights are decoded."""
        source, config, m = self.source, self.plan.config, self.plan.m
        span = max(source.group, fragments.BLOCK)  # columns that are decoded together
        groups = span // source.group
        order = list(itertools.product(range(config.tile_k // span), range(config.height)))

        def add(steps: Sequence[Step], totals: Sequence[Array]) -> Sequence[Array]:
            made = list(totals)
            ready = [
                source.prepare(state, step.load) for state, step in zip(states, steps, strict=True)
            ]

            def decoded(i: int) -> list[Array]:
                if i == len(order):
                    return []
                (s, h), blocks = order[i], span // fragments.BLOCK
                which = range(s * blocks, (s + 1) * blocks)
                words = [source.words(steps[h].load, b) for b in which]
                return [
                    a
                    for b, here in zip(which, words, strict=True)
                    for a in source.block(ready[h], here, b)
                ]

            pieces = decoded(0)
            for i, (s, h) in enumerate(order):

                def multiplied(
                    *accs: Any, i: int = i, h: int = h, s: int = s, pieces: Any = pieces
                ) -> Any:
                    column = 0
                    for a in pieces:
                        steps[h].multiply(accs[column // source.group], a, s * span + column)
                        column += a.shape[1]
                    following = decoded(i + 1)
                    return [acc[...] for acc in accs], following

                sums, pieces = pl.run_scoped(multiplied, *[self._accumulator()] * groups)
                assert source.scale is not None
                for g, product in enumerate(sums):
                    scale = source.scale(ready[h], s * groups + g)
                    made[h] += product * registers.columns_of(scale, m)
            return made

        zero = registers.zeros((fragments.ROWS, m), interpret=self.interpreted)
        return lax.fori_loop(
            start,
            stop,
            lambda i, totals: staged(i, lambda steps: add(steps, totals)),
            [zero] * config.height,
        )

    def _accumulator(self) -> Any:
        return plgpu.ACC((fragments.ROWS, self.plan.m), jnp.float32)


def multiply(
    x: BFloat16[Array, "rows K"],
    source: Source,
    plan: HopperPlan,
    *,
    out_dtype: Any,
    interpret: Any,
) -> Float[Array, "rows columns"]:
    """x times the transpose of the weight, both padded; without padding, if compiled."""
    assert interpret or x.shape[0] <= plan.m, (x.shape, plan)
    kernel = Kernel(source=source, plan=plan, interpreted=bool(interpret))
    if interpret:
        return _interpreted(x, kernel, out_dtype, interpret)
    operands = (x, *source.which, *source.arrays, *source.rows)
    outs = [jax.ShapeDtypeStruct(plan.result, out_dtype)]
    if plan.parts > 1:
        operands, outs = (parts.counts(plan), *operands), [*outs, parts.memory(plan)]
    return call(kernel, outs, False)(*operands)[0]


def _interpreted(
    x: BFloat16[Array, "M K"], kernel: Kernel, out_dtype: Any, interpret: Any
) -> Float[Array, "M N"]:
    """The same by the interpreter, which counts nothing in memory: parts are added afterwards."""
    source, plan = kernel.source, kernel.plan
    chex.assert_shape(x, (plan.m, plan.k))
    dtype = out_dtype if plan.parts == 1 else jnp.float32
    cut = plan.n - plan.dealt * plan.tile_n  # rows of the weight whose tiles are cut
    rest = (plan.parts - 1, plan.m, cut) if plan.parts > 1 else (1, 1, plan.tile_n)  # never read
    outs = [jax.ShapeDtypeStruct((plan.m, plan.n), dtype), jax.ShapeDtypeStruct(rest, jnp.float32)]
    operands = (x, *source.which, *source.arrays, *source.rows)
    total, others = call(kernel, outs, interpret)(*operands)
    if plan.parts == 1:
        return total
    counts = np.array([plan.parts_of(tile) for tile in range(plan.dealt, plan.tiles)])
    # In the order of steps; memory of a part that a tile does not have is not written.
    for i in range(1, plan.parts):
        has = np.repeat(counts > i, plan.tile_n)[None]
        part = jnp.where(has, others[i - 1], 0)
        total += jnp.pad(part, ((0, 0), (plan.n - cut, 0)))
    return total.astype(out_dtype)


def call(kernel: Kernel, outs: Sequence[Any], interpret: Any) -> Callable[..., Any]:
    """The function of its operands."""
    plan = kernel.plan

    def body(*refs: Any, **scratch: Any) -> None:
        if not interpret:
            mosaic.wait_for_earlier_kernels()
        kernel.body(*refs, **scratch)

    return plgpu.kernel(
        body,
        out_type=tuple(outs),
        grid=(plan.blocks,),
        grid_names=("block",),
        num_threads=WARPGROUPS + 1,
        thread_name="warpgroup",
        scratch_types=kernel.scratch(),
        interpret=registers.interpret_params(interpret),
        kernel_name=kernel.source.name,
    )
