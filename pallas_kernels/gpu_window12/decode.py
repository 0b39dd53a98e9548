"""Dense arrays from window12 by a Pallas kernel for Hopper, at the speed of memory.

Blocks are decoded in registers, in the order in which tensor cores would take them, and leave
through shared memory, so that the copy engine writes whole lines. Escapes are set afterwards, in
place.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Shaped

from jentropy.codecs import window12
from jentropy.pallas_kernels import bf16, targets
from jentropy.pallas_kernels.hopper import fragments, registers
from jentropy.pallas_kernels.resident import ResidentTensor

from .layout import entries

BLOCKS = 2  # that are decoded in a step
STAGES, LEAVING = 4, 2  # steps whose words are under way, and whose numbers are
SWIZZLE = 128  # bytes: of the order in shared memory that no two threads meet in
RESIDENT = 2  # blocks of threads that a multiprocessor has room for


def runs_of(row_blocks: int, steps: int) -> int:
    """Runs of equal length that a row of blocks is cut into, so that there is work for all."""
    wanted = -(-RESIDENT * targets.current_gpu().multiprocessors // row_blocks)
    return min((p for p in range(1, steps + 1) if steps % p == 0), key=lambda p: abs(p - wanted))


def decode(
    weight: ResidentTensor, dtype: Any, interpret: Any = False
) -> Shaped[Array, "rows columns"]:
    """The packed matrix, padded."""
    words, which = weight.arrays["words"], weight.which()
    interpreted = bool(interpret)
    row_blocks, column_blocks = words.shape[-4:-2]
    steps = column_blocks // BLOCKS
    runs = runs_of(row_blocks, steps)
    width, length = BLOCKS * fragments.BLOCK, steps // runs
    transforms = (
        plgpu.TilingTransform((8, SWIZZLE // jnp.dtype(dtype).itemsize)),
        plgpu.SwizzleTransform(SWIZZLE),
    )

    def body(*refs: Any) -> None:
        *which_g, words_g, scale_g, out_g, words_s, out_s, full = refs
        if which_g:
            words_g = words_g.at[which_g[0][0]]
        row, run = lax.axis_index("row"), lax.axis_index("run")
        first = run * length
        scale = registers.load_rows(scale_g, row * fragments.ROWS, interpret=interpreted)
        scale = registers.columns_of(scale, fragments.BLOCK)

        def copy_in(i: Any) -> None:
            source = words_g.at[row, pl.ds((first + i) * BLOCKS, BLOCKS)]
            stage = lax.rem(i, np.int32(STAGES))
            plgpu.copy_gmem_to_smem(source, words_s.at[stage], full.at[stage])

        def step(i: Any, nothing: None) -> None:
            i = jnp.asarray(i, jnp.int32)  # with jax_enable_x64 a counter has 64 bits
            stage, place = lax.rem(i, np.int32(STAGES)), lax.rem(i, np.int32(LEAVING))
            plgpu.barrier_wait(full.at[stage])
            plgpu.wait_smem_to_gmem(LEAVING - 1, wait_read_only=True)
            for b in range(BLOCKS):
                planes = (
                    registers.load(
                        words_s,
                        (stage, b, pl.ds(4 * i, 4)),
                        registers.STRIDED,
                        interpret=interpreted,
                    )
                    for i in range(window12.WORDS)
                )
                slots = window12.unpack_words(*planes)
                numbers = registers.to_fragments(slots, interpret=interpreted) * scale
                columns = slice(b * fragments.BLOCK, (b + 1) * fragments.BLOCK)
                out_s[place, :, columns] = numbers.astype(dtype)
            plgpu.commit_smem()
            target = out_g.at[
                pl.ds(row * fragments.ROWS, fragments.ROWS), pl.ds((first + i) * width, width)
            ]
            plgpu.copy_smem_to_gmem(out_s.at[place], target)

            @pl.when(i + STAGES < length)
            def _() -> None:
                copy_in(i + STAGES)

        for i in range(min(STAGES, length)):
            copy_in(np.int32(i))
        lax.fori_loop(0, length, step, None)
        plgpu.wait_smem_to_gmem(0)

    shape = row_blocks * fragments.ROWS, column_blocks * fragments.BLOCK
    out = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct(shape, dtype),
        grid=(row_blocks, runs),
        grid_names=("row", "run"),
        scratch_types=(
            plgpu.SMEM((STAGES, BLOCKS, *words.shape[-2:]), words.dtype),
            plgpu.SMEM((LEAVING, fragments.ROWS, width), dtype, transforms=transforms),
            plgpu.Barrier(num_barriers=STAGES),
        ),
        interpret=registers.interpret_params(interpret),
        kernel_name="decode_window12",
    )(*which, words, weight.array("scale"))
    row, column, code = entries(weight.array("escapes"))
    # As integers: no conversion may touch a NaN.
    bits = jnp.uint16 if jnp.dtype(dtype).itemsize == 2 else jnp.uint32
    out, numbers = (lax.bitcast_convert_type(a, bits) for a in (out, bf16.numbers(code, dtype)))
    return lax.bitcast_convert_type(out.at[row, column].set(numbers, mode="drop"), dtype)
