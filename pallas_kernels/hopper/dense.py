"""Dense arrays by a Pallas kernel for Hopper, at the speed of memory.

Blocks are decoded in registers, in the order in which tensor cores would take them, and leave
through shared memory, so that the copy engine writes whole lines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Shaped

from jentropy.pallas_kernels import targets

from . import fragments, registers

BLOCKS = 2  # that are decoded in a step
STAGES, LEAVING = 4, 2  # steps whose words are under way, and whose numbers are
SWIZZLE = 128  # bytes: of the order in shared memory that no two threads meet in
RESIDENT = 2  # blocks of threads that a multiprocessor has room for
WIDTH = BLOCKS * fragments.BLOCK
COPIED = 128  # bytes that the copy engine moves at least


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """How packed weights become numbers; most is as in `stream.Source`.

    Attributes:
      arrays: [row blocks of 64, column units, ...], copied to shared memory step by step; read
        where they lie, if a step's part is too small for the copy engine.
      columns: of a unit of each.
      rows, which, begin: see there.
      block: (state, load, b) -> block b of a step [64, 64], in any float dtype.
      name: of the kernel.
    """

    arrays: Sequence[jax.Array]
    columns: Sequence[int]
    rows: Sequence[jax.Array]
    which: Sequence[jax.Array]
    begin: Callable[..., Any]
    block: Callable[..., Array]
    name: str


def runs_of(row_blocks: int, steps: int) -> int:
    """Runs of equal length that a row of blocks is cut into, so that there is work for all."""
    wanted = -(-RESIDENT * targets.current_gpu().multiprocessors // row_blocks)
    return min((p for p in range(1, steps + 1) if steps % p == 0), key=lambda p: abs(p - wanted))


def decode(packed: Packed, dtype: Any, interpret: Any) -> Shaped[Array, "rows columns"]:
    """The packed matrix, padded."""
    interpreted = bool(interpret)
    lead = len(packed.which)
    row_blocks, units = packed.arrays[0].shape[lead : lead + 2]
    steps = units * packed.columns[0] // WIDTH
    runs = runs_of(row_blocks, steps)
    length = steps // runs
    transforms = (
        plgpu.TilingTransform((8, SWIZZLE // jnp.dtype(dtype).itemsize)),
        plgpu.SwizzleTransform(SWIZZLE),
    )
    count = len(packed.arrays)
    parts = [  # of each array in a step
        (WIDTH // columns, *array.shape[lead + 2 :])
        for array, columns in zip(packed.arrays, packed.columns, strict=True)
    ]
    copied = [
        int(np.prod(part)) * array.dtype.itemsize >= COPIED
        for part, array in zip(parts, packed.arrays, strict=True)
    ]

    def body(*refs: Any) -> None:
        inputs, (out_g, stages_s, out_s, full) = refs[:-4], refs[-4:]
        if packed.which:
            which, *stacked = inputs
            inputs = tuple(ref.at[which[0]] for ref in stacked)
        arrays_g, rows_g = inputs[:count], inputs[count:]
        row, run = lax.axis_index("row"), lax.axis_index("run")
        first = run * length
        state = packed.begin(
            lambda i: registers.load_rows(rows_g[i], row * fragments.ROWS, interpret=interpreted)
        )

        def copy_in(i: Any) -> None:
            stage = lax.rem(i, np.int32(STAGES))
            stages = iter(stages_s)
            for array, part, is_copied in zip(arrays_g, parts, copied, strict=True):
                if is_copied:
                    source = array.at[row, pl.ds((first + i) * part[0], part[0])]
                    plgpu.copy_gmem_to_smem(source, next(stages).at[stage], full.at[stage])

        def step(i: Any, nothing: None) -> None:
            i = jnp.asarray(i, jnp.int32)  # with jax_enable_x64 a counter has 64 bits
            stage, place = lax.rem(i, np.int32(STAGES)), lax.rem(i, np.int32(LEAVING))

            def load(j: int, index: tuple[Any, ...], layout: Any = None) -> Any:
                unit, *inside = index
                ref, index = arrays_g[j], (row, (first + i) * parts[j][0] + unit, *inside)
                if copied[j]:
                    ref, index = stages_s[sum(copied[:j])], (stage, unit, *inside)
                if layout is None:
                    return ref[index]
                return registers.load(ref, index, layout, interpret=interpreted)

            plgpu.barrier_wait(full.at[stage])
            plgpu.wait_smem_to_gmem(LEAVING - 1, wait_read_only=True)
            for b in range(BLOCKS):
                columns = slice(b * fragments.BLOCK, (b + 1) * fragments.BLOCK)
                out_s[place, :, columns] = packed.block(state, load, b).astype(dtype)
            plgpu.commit_smem()
            target = out_g.at[
                pl.ds(row * fragments.ROWS, fragments.ROWS), pl.ds((first + i) * WIDTH, WIDTH)
            ]
            plgpu.copy_smem_to_gmem(out_s.at[place], target)

            @pl.when(i + STAGES < length)
            def _() -> None:
                copy_in(i + STAGES)

        for i in range(min(STAGES, length)):
            copy_in(np.int32(i))
        lax.fori_loop(0, length, step, None)
        plgpu.wait_smem_to_gmem(0)

    return plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct(
            (row_blocks * fragments.ROWS, units * packed.columns[0]), dtype
        ),
        grid=(row_blocks, runs),
        grid_names=("row", "run"),
        scratch_types=(
            [
                plgpu.SMEM((STAGES, *part), array.dtype)
                for array, part, is_copied in zip(packed.arrays, parts, copied, strict=True)
                if is_copied
            ],
            plgpu.SMEM((LEAVING, fragments.ROWS, WIDTH), dtype, transforms=transforms),
            plgpu.Barrier(num_barriers=STAGES, num_arrivals=sum(copied)),
        ),
        interpret=registers.interpret_params(interpret),
        kernel_name=packed.name,
    )(*packed.which, *packed.arrays, *packed.rows)
