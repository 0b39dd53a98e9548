"""Registers of kernels for Hopper, compiled and in interpret mode.

Interpret mode knows neither layouts of registers nor `inline_mgpu`: there the same steps are plain
JAX, fragments are put together by `fragments`, and WGMMA takes them from shared memory. What Pallas
Mosaic GPU lacks stands in `mosaic`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, BFloat16, Float32, Shaped, UInt32

from jentropy import jax_internals
from jentropy.errors import UnsupportedError

from . import fragments, mosaic

WORDS = (fragments.REGISTERS, fragments.THREADS)  # of a fragment, as they lie in shared memory
# Thread t holds words 4 t to 4 t + 3.
STRIDED = plgpu.Layout.WG_STRIDED(WORDS, vec_size=fragments.REGISTERS)
ROW_LAYOUT = plgpu.Layout.WGMMA.reduce(1)  # a number for each row of a block
INTERPRETER_THREADS = 4  # three warpgroups, and one that nobody waits for


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
        return jax_internals.gpu_interpreter(uninitialized_memory="nan")
    return interpret


def load(ref: Any, index: tuple[Any, ...], layout: Any, *, interpret: bool) -> Any:
    """Part of a reference, in registers of a layout."""
    if interpret:
        return ref[index]
    return mosaic.load(ref, index, layout, optimized=layout is not ROW_LAYOUT)


def load_rows(ref: Any, row: Any, *, interpret: bool) -> Shaped[Array, " rows"]:
    """A number for each row of a block."""
    return load(ref, (pl.ds(row, fragments.ROWS),), ROW_LAYOUT, interpret=interpret)


def columns_of(numbers: Any, columns: int) -> Any:
    """Numbers of rows as so many columns; one number as it is."""
    if not numbers.ndim:
        return numbers
    return lax.broadcast_in_dim(numbers, (fragments.ROWS, columns), (0,))


def of_rows(rows: Sequence[Any], *, interpret: bool) -> Array:
    """Numbers of rows as columns of a matrix A.

    Args:
      rows: for 16 columns each: numbers [64], or uint32[64], bfloat16 twice.
    """
    shape = fragments.ROWS, fragments.COLUMNS * len(rows)
    if not interpret:
        return mosaic.rows_as_wgmma(rows, ROW_LAYOUT, shape)
    if rows[0].dtype == jnp.uint32:
        rows = [lax.bitcast_convert_type(r.astype(jnp.uint16), jnp.bfloat16) for r in rows]
    return jnp.concatenate([columns_of(r, fragments.COLUMNS) for r in rows], axis=1)


def scaled(
    words: Sequence[UInt32[Array, "4 128"]], factor: Any, *, interpret: bool
) -> BFloat16[Array, "64 columns"]:
    """Pairs of bfloat16, subnormal ones too, times powers or numbers that make exact products.

    Args:
      words: of each fragment, see `to_fragments`.
      factor: an integer, 2^factor; or for each fragment uint32[64], bfloat16 of each row twice.
    """
    numbers = to_fragments(tuple(words), interpret=interpret)
    if isinstance(factor, int):
        power = ml_dtypes.bfloat16(2.0**factor)
        return (
            _exact_product(numbers, jnp.full_like(numbers, power))
            if interpret
            else (numbers * power)
        )
    factors = of_rows(factor, interpret=interpret)
    return _exact_product(numbers, factors) if interpret else numbers * factors


def multiply_add(
    numbers: BFloat16[Array, "64 columns"], factor: float, addend: Any, *, interpret: bool
) -> BFloat16[Array, "64 columns"]:
    """Numbers, subnormal ones too, times a power of two, and a number or numbers more; exactly."""
    if not interpret:
        return mosaic.multiply_add(numbers, factor, addend)
    of = partial(jnp.full_like, numbers)
    addend = of(ml_dtypes.bfloat16(addend)) if isinstance(addend, float) else addend
    return _exact_product(numbers, of(ml_dtypes.bfloat16(factor))) + addend


def _exact_product(a: Array, b: Array) -> BFloat16[Array, "rows columns"]:
    """Exact products that are no subnormal numbers: XLA takes subnormal factors for zeros."""
    product: Any = np.float32(1)
    power: Any = np.int32(0)
    sign = jnp.uint32(0)
    for factor in (a, b):
        bits = lax.bitcast_convert_type(factor, jnp.uint16).astype(jnp.uint32)
        exponent, mantissa = bits >> 7 & 0xFF, bits & 0x7F
        significand = jnp.where(exponent > 0, mantissa | 0x80, mantissa)
        product *= significand.astype(jnp.float32)
        power += jnp.maximum(exponent, 1).astype(jnp.int32) - (127 + 7)
        sign ^= bits << 16 & np.uint32(1 << 31)
    scale = jnp.where(product == 0, 0, power + 127)
    product *= lax.bitcast_convert_type(scale.astype(jnp.uint32) << 23, jnp.float32)
    signed = lax.bitcast_convert_type(product, jnp.uint32) | sign
    return lax.bitcast_convert_type(signed, jnp.float32).astype(jnp.bfloat16)


def zeros(shape: tuple[int, int], *, interpret: bool) -> Float32[Array, "64 columns"]:
    """Of an accumulator."""
    made = jnp.zeros(shape, jnp.float32)
    return made if interpret else plgpu.layout_cast(made, plgpu.Layout.WGMMA)


def store_transposed(
    ref: Any, column: Any, numbers: Any, window: tuple[Any, Any, Any] | None, *, interpret: bool
) -> None:
    """Writes the transpose of an accumulator [columns, M] to columns of a matrix from one on.

    Args:
      window: the first row, and which rows are written, from which to which; None: all. What the
        matrix does not have is not written; interpreted it has all columns.
    """
    if not interpret:
        mosaic.store_transposed(ref, numbers, column, window)
        return
    columns = pl.ds(column, numbers.shape[0])
    if window is None:
        ref[:, columns] = numbers.T
        return
    first, low, high = window

    def one(row: Any, _: Any) -> None:
        ref[row, columns] = lax.dynamic_index_in_dim(numbers, row - first, axis=1, keepdims=False)

    lax.fori_loop(low, high, one, None)


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
    """Pairs of bfloat16 in the order of `fragments` as WGMMA's matrix A, 16 columns each."""
    if not interpret:
        shape = fragments.ROWS, fragments.COLUMNS * len(words)
        return mosaic.as_wgmma(words, STRIDED, shape)
    halves = fragments.halves(jnp.stack(words).reshape(1, 1, len(words), fragments.PLACES))
    return lax.bitcast_convert_type(fragments.restore(halves), jnp.bfloat16)


def staging(m: int) -> dict[str, Any]:
    """Scratch that `multiply` needs in interpret mode: both matrices of a product, by warpgroup."""
    wide = (fragments.BLOCK, fragments.BLOCK // 2, fragments.COLUMNS)  # columns of A
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
    left = scratch[f"a{columns}"].at[warpgroup]
    left[...] = a
    right = x.at[index].T
    if not mosaic.AT_REFERENCES:
        right = scratch[f"x{columns}"].at[warpgroup]
        right[...] = x[index].T
    plgpu.commit_smem()
    plgpu.wgmma(acc, left, right)
    plgpu.wgmma_wait(0)
