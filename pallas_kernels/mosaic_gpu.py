"""What kernels for Hopper need of Pallas Mosaic GPU beyond its API: one place for each gap.

Interpret mode knows neither layouts of registers nor `inline_mgpu`: there the same steps are plain
JAX, fragments are put together by `layouts.fragments`, and WGMMA takes them from shared memory.
"""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.mosaic.gpu import fragmented_array as mgpu
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, memref, vector
from jaxtyping import Array, BFloat16, UInt32

from jentropy.errors import UnsupportedError
from jentropy.pallas_kernels.layouts import fragments

WORDS = (fragments.REGISTERS, fragments.THREADS)  # of a fragment, as they lie in shared memory
# Thread t holds words 4 t to 4 t + 3.
STRIDED = plgpu.Layout.WG_STRIDED(WORDS, vec_size=fragments.REGISTERS)
NEW_LOAD = jax.version.__version_info__ >= (0, 11)  # takes a sliced reference, not an index
INTERPRETER_THREADS = 4  # three warpgroups, and one that nobody waits for
INTERPRETS_TRANSPOSED = jax.version.__version_info__ >= (0, 11)  # references, in WGMMA


def interpret_params(interpret: Any) -> Any:
    """What `plgpu.kernel` takes: None compiles.

    Args:
      interpret: False; True or "hlo" for the interpreter of GPU kernels, with memory that is
        poisoned until it is written; or its own `InterpretGPUParams`.

    Raises:
      UnsupportedError: too few threads. Warpgroups run on XLA's own, and wait for each other there.
    """
    if not interpret:
        return None
    threads = int(os.environ.get("NPROC") or os.cpu_count() or 1)
    if threads < INTERPRETER_THREADS:
        raise UnsupportedError(
            "interpret mode of GPU kernels",
            expected=f"{INTERPRETER_THREADS} threads",
            found=threads,
            hint=f"set NPROC={INTERPRETER_THREADS} in the environment before JAX starts",
        )
    if interpret is True or interpret == "hlo":
        return interpreter(uninitialized_memory="nan")
    return interpret


def interpreter(**options: Any) -> Any:
    """`InterpretGPUParams`, which is not among the public names of jax 0.10."""
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

    return InterpretGPUParams(**options)


def load(ref: Any, index: tuple[Any, ...], layout: Any, *, interpret: bool, **options: Any) -> Any:
    """Part of a reference, in registers of a layout."""
    if interpret:
        return ref[index]
    if NEW_LOAD:
        return plgpu.load(ref.at[index], layout=layout, **options)
    return plgpu.load(ref, index, layout=layout, **options)


def store_transposed(
    ref: Any, index: tuple[Any, ...], column: Any, numbers: Any, *, interpret: bool
) -> None:
    """Writes the transpose of an accumulator [columns, M] to columns of a matrix [M, ...].

    Eight threads write eight columns of a row: whole lines of 32 bytes, where they are float32.
    """
    own = (*index, slice(None), pl.ds(column, numbers.shape[0]))
    if interpret:
        ref[own] = numbers.T
        return

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), plgpu.Layout.WGMMA))
    def store(ctx: Any, target: Any, numbers: Any) -> None:
        del ctx
        index = ir.IndexType.get()
        column, row = next(iter(numbers.layout.thread_idxs(numbers.shape)))  # of the first
        for i, register in enumerate(numbers.registers.flat):
            wide, high = divmod(i, 2)  # by eight columns of the accumulator, and eight rows
            for half in range(2):
                at = (row, 8 * wide + half), (column, 8 * high)
                memref.store(
                    vector.extract(register, [], [half]),
                    target,
                    [arith.addi(first, utils.c(more, index)) for first, more in at],
                )

    store(ref.at[own], numbers)


def places(*, interpret: bool) -> UInt32[Array, "4 128"]:
    """Place in a fragment of each word."""
    if interpret:
        high, low = (lax.broadcasted_iota(jnp.uint32, WORDS, axis) for axis in (0, 1))
    else:
        high, low = (
            plgpu.broadcasted_iota(jnp.uint32, WORDS, axis, layout=STRIDED) for axis in (0, 1)
        )
    return high * np.uint32(WORDS[1]) + low


def to_fragments(
    words: tuple[UInt32[Array, "4 128"], ...], *, interpret: bool
) -> BFloat16[Array, "64 columns"]:
    """Pairs of bfloat16 in the order of `layouts.fragments` as WGMMA's matrix A, 16 columns each.

    Nothing is moved: every register is given another type.
    """
    columns = fragments.COLUMNS * len(words)
    if interpret:
        halves = fragments.halves(jnp.stack(words).reshape(1, 1, len(words), fragments.PLACES))
        return lax.bitcast_convert_type(fragments.restore(halves), jnp.bfloat16)

    @plgpu.inline_mgpu(
        arg_types=(STRIDED,) * len(words),
        return_type=plgpu.ShapeDtypeStruct(
            (fragments.ROWS, columns), jnp.bfloat16, layout=plgpu.Layout.WGMMA
        ),
    )
    def reinterpret(ctx: Any, *words: Any) -> Any:
        del ctx
        i32 = ir.IntegerType.get_signless(32)
        one, pair = ir.VectorType.get((1,), i32), ir.VectorType.get((2,), ir.BF16Type.get())
        registers = [
            vector.bitcast(pair, vector.broadcast(one, vector.extract(register, [], [i])))
            for word in words
            for register in word.registers.flat
            for i in range(fragments.REGISTERS)
        ]
        out = np.empty(mgpu.WGMMA_LAYOUT.registers_shape((fragments.ROWS, columns)), object)
        out.flat[:] = np.array(registers, object)
        return mgpu.FragmentedArray(_registers=out, _layout=mgpu.WGMMA_LAYOUT, _is_signed=None)

    return reinterpret(*words)


def staging(m: int) -> dict[str, Any]:
    """Scratch that `multiply` needs in interpret mode: both matrices of a product, by warpgroup."""
    wide = (fragments.BLOCK, fragments.COLUMNS)  # columns of A
    return {
        **{f"a{k}": plgpu.SMEM((2, fragments.ROWS, k), jnp.bfloat16) for k in wide},
        **{f"x{k}": plgpu.SMEM((2, k, m), jnp.bfloat16) for k in wide},
    }


def multiply(
    acc: Any, a: BFloat16[Array, "64 columns"], x: Any, index: tuple[Any, ...], stage: Any
) -> None:
    """Adds a @ x[index].T to an accumulator [64, M].

    Args:
      stage: None, or in interpret mode what `staging` allocated and the warpgroup.
    """
    if stage is None:
        plgpu.wgmma(acc, a, x.at[index].T)
        return
    scratch, warpgroup = stage
    columns = a.shape[1]
    own = scratch[f"a{columns}"].at[warpgroup]
    own[...] = a
    right = x.at[index].T
    if not INTERPRETS_TRANSPOSED:
        right = scratch[f"x{columns}"].at[warpgroup]
        right[...] = x[index].T
    plgpu.commit_smem()
    plgpu.wgmma(acc, own, right)
    plgpu.wgmma_wait(0)
