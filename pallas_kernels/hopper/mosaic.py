"""What kernels for Hopper need of Mosaic and MLIR that Pallas has no words for.

These are called inside of kernels, when they are compiled. Like `jentropy.jax_internals` they use
pieces of JAX that are no interface, and were tried with the same releases. Where one has moved,
kernels for Hopper fail; `default_backend` tries them first, says so and takes the reference.
"""

from __future__ import annotations

import functools
from contextlib import nullcontext
from typing import Any

import jax
import numpy as np
from jax.experimental.mosaic.gpu import fragmented_array as mgpu
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm, memref, vector

AT_REFERENCES = jax.__version_info__ >= (0, 11)  # Mosaic loads and multiplies `ref.at[...]`


def load(ref: Any, index: tuple[Any, ...], layout: Any, **options: Any) -> Any:
    """Part of a reference, in registers of a layout."""
    if AT_REFERENCES:
        return plgpu.load(ref.at[index], layout=layout, **options)
    return plgpu.load(ref, index, layout=layout, **options)


def store_transposed(
    ref: Any, numbers: Any, column: Any, window: tuple[Any, Any, Any] | None = None
) -> None:
    """Writes the transpose of an accumulator [columns, M] to columns of a reference [rows, N].

    What is not in the reference is left out. Eight threads write eight columns of a row: whole
    lines of 32 bytes, where they are float32.

    Args:
      column: int32, of the first.
      window: int32 each, the row of the first, and which rows are written, from which to which;
        None: all, from row 0 on.
    """
    rows, columns = ref.shape
    ragged = columns % numbers.shape[0] != 0
    scalar = plgpu.Layout.WG_SPLAT(())
    scalars = (column, *(window or ()))

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), plgpu.Layout.WGMMA, *[scalar] * len(scalars)))
    def store(ctx: Any, target: Any, numbers: Any, *scalars: Any) -> None:
        del ctx
        index = ir.IndexType.get()
        below = arith.CmpIPredicate.slt
        own, row = next(iter(numbers.layout.thread_idxs(numbers.shape)))  # of the first
        begin, *bounds = (arith.index_cast(index, s.registers.item()) for s in scalars)
        edges: Any = bounds or (utils.c(0, index), None, utils.c(rows, index))
        first, low, high = edges
        row = arith.addi(row, first)

        for i, register in enumerate(numbers.registers.flat):
            wide, eighth = divmod(i, 2)  # by eight columns of the accumulator, and eight rows
            at_column = arith.addi(begin, arith.addi(own, utils.c(8 * eighth, index)))
            for half in range(2):
                if not bounds and 8 * wide + half >= rows:
                    continue
                at_row = arith.addi(row, utils.c(8 * wide + half, index))
                checks = []
                if bounds:
                    checks.append(arith.cmpi(arith.CmpIPredicate.sge, at_row, low))
                if bounds or 8 * wide + 8 > rows:
                    checks.append(arith.cmpi(below, at_row, high))
                if ragged:
                    checks.append(arith.cmpi(below, at_column, utils.c(columns, index)))
                number = vector.extract(register, [], [half])
                is_there = functools.reduce(arith.andi, checks) if checks else None
                with nullcontext() if is_there is None else utils.when(is_there):
                    memref.store(number, target, [at_row, at_column])
        if bounds or ragged or rows % 8:
            utils.warp_barrier()  # threads that had nothing to store wait for the others

    store(ref, numbers, *scalars)


# What follows is of single warps, and of the numbers that threads hold: none waits for another.


def store_held(ref: Any, numbers: Any) -> None:
    """Writes an accumulator as threads hold it to float32[registers, 128, 2]."""

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), plgpu.Layout.WGMMA))
    def store(ctx: Any, target: Any, numbers: Any) -> None:
        del ctx
        index = ir.IndexType.get()
        for i, register in enumerate(numbers.registers.flat):
            vector.store(register, target, [utils.c(i, index), _thread(), utils.c(0, index)])

    store(ref, numbers)


def load_held(ref: Any, shape: tuple[int, ...]) -> Any:
    """Reads an accumulator of a shape that `store_held` wrote."""
    made = plgpu.ShapeDtypeStruct(shape, np.dtype(np.float32), layout=plgpu.Layout.WGMMA)

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(),), return_type=made)
    def load(ctx: Any, source: Any) -> Any:
        del ctx
        index, pair = ir.IndexType.get(), ir.VectorType.get((2,), ir.F32Type.get())
        out = np.empty(mgpu.WGMMA_LAYOUT.registers_shape(shape), object)
        for i in range(out.size):
            at = [utils.c(i, index), _thread(), utils.c(0, index)]
            out.flat[i] = vector.load(pair, source, at)
        return mgpu.FragmentedArray(_registers=out, _layout=mgpu.WGMMA_LAYOUT, _is_signed=None)

    return load(ref)


def _thread() -> Any:
    """Of a warpgroup, as an index."""
    inside = arith.andi(utils.thread_idx(), utils.c(127, ir.IntegerType.get_signless(32)))
    return arith.index_cast(ir.IndexType.get(), inside)


def wait_for_earlier_kernels() -> None:
    """Ends when all kernels before this one have ended, which may be launched before they have.

    Before jax 0.11.2 it never is, and nothing has to be waited for.
    """
    if jax.__version_info__ >= (0, 11, 2):
        plgpu.griddepcontrol_wait()


def arrive(counts: Any) -> Any:
    """Counts a warp, which others see with all that it wrote before, and it with what they did.

    Args:
      counts: int32[4] on the device, one for each warp of a warpgroup.

    Returns:
      int32: how many warps came before.
    """
    assembly = """{
        .reg .pred first; .reg .b32 lane; .reg .b32 before;
        fence.acq_rel.gpu;
        bar.warp.sync 0xffffffff;
        mov.u32 lane, %laneid;
        setp.eq.u32 first, lane, 0;
        mov.b32 before, 0;
        @first atom.relaxed.gpu.global.add.u32 before, [$1], 1;
        bar.warp.sync 0xffffffff;
        shfl.sync.idx.b32 $0, before, 0, 31, 0xffffffff;
        fence.acq_rel.gpu;
    }"""
    return _on_count(counts, assembly)


def reset(counts: Any) -> None:
    """Sets a warp's count back to 0; others have no more to do with it."""

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(),))
    def clear(ctx: Any, counts: Any) -> None:
        del ctx
        i32 = ir.IntegerType.get_signless(32)
        lane = arith.andi(utils.thread_idx(), utils.c(31, i32))
        with utils.when(arith.cmpi(arith.CmpIPredicate.eq, lane, utils.c(0, i32))):
            memref.store(utils.c(0, i32), counts, [_warp()])

    clear(counts)


def _warp() -> Any:
    """Of a warpgroup, as an index."""
    i32 = ir.IntegerType.get_signless(32)
    warp = arith.shrui(utils.thread_idx(), utils.c(5, i32))
    return arith.index_cast(ir.IndexType.get(), arith.andi(warp, utils.c(3, i32)))


def _on_count(counts: Any, assembly: str) -> Any:
    """What assembly makes of the address of a warp's count."""
    made = plgpu.ShapeDtypeStruct((), np.dtype(np.int32), layout=plgpu.Layout.WG_SPLAT(()))

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(),), return_type=made)
    def run(ctx: Any, counts: Any) -> Any:
        del ctx
        i32 = ir.IntegerType.get_signless(32)
        one = utils.memref_slice(counts, (utils.ds(_warp(), 1),))
        found: Any = llvm.inline_asm(
            i32, [utils.memref_ptr(one)], assembly, "=r,l", has_side_effects=True
        )
        return mgpu.FragmentedArray.splat(found, (), is_signed=True)

    return run(counts)


def as_wgmma(words: tuple[Any, ...], strided: Any, shape: tuple[int, int]) -> Any:
    """Registers of words as bfloat16 of WGMMA's matrix A: each is given another type, none moved.

    Args:
      words: uint32, four registers to a thread each.
      strided: their layout.
      shape: of the result.
    """
    made = plgpu.ShapeDtypeStruct(shape, jax.numpy.bfloat16, layout=plgpu.Layout.WGMMA)

    @plgpu.inline_mgpu(arg_types=(strided,) * len(words), return_type=made)
    def reinterpret(ctx: Any, *words: Any) -> Any:
        del ctx
        i32 = ir.IntegerType.get_signless(32)
        one, pair = ir.VectorType.get((1,), i32), ir.VectorType.get((2,), ir.BF16Type.get())
        registers = [
            vector.bitcast(pair, vector.broadcast(one, vector.extract(register, [], [i])))
            for word in words
            for register in word.registers.flat
            for i in range(4)
        ]
        out = np.empty(mgpu.WGMMA_LAYOUT.registers_shape(shape), object)
        out.flat[:] = np.array(registers, object)
        return mgpu.FragmentedArray(_registers=out, _layout=mgpu.WGMMA_LAYOUT, _is_signed=None)

    return reinterpret(*words)


def rows_as_wgmma(rows: Any, row_layout: Any, shape: tuple[int, int]) -> Any:
    """Numbers of rows as registers of WGMMA's matrix A, 16 columns each.

    Args:
      rows: numbers [64], or uint32[64] that hold a bfloat16 twice.
      row_layout: theirs.
      shape: of the result.
    """
    is_pair = rows[0].dtype == jax.numpy.uint32
    dtype = jax.numpy.bfloat16 if is_pair else rows[0].dtype
    made = plgpu.ShapeDtypeStruct(shape, dtype, layout=plgpu.Layout.WGMMA)

    @plgpu.inline_mgpu(arg_types=(row_layout,) * len(rows), return_type=made)
    def spread(ctx: Any, *rows: Any) -> Any:
        del ctx
        registers = []
        for row in rows:
            if is_pair:
                pair = ir.VectorType.get((2,), ir.BF16Type.get())
                halves = [vector.bitcast(pair, r) for r in row.registers.flat]
            else:
                pair = ir.VectorType.get((2,), row.mlir_dtype)
                halves = [
                    vector.broadcast(pair, vector.extract(r, [], [0])) for r in row.registers.flat
                ]
            registers += 2 * halves  # rows 8 apart; again for the next eight columns
        out = np.empty(mgpu.WGMMA_LAYOUT.registers_shape(shape), object)
        out.flat[:] = np.array(registers, object)
        return mgpu.FragmentedArray(_registers=out, _layout=mgpu.WGMMA_LAYOUT, _is_signed=None)

    return spread(*rows)


def multiply_add(numbers: Any, factor: float, addend: Any) -> Any:
    """Registers of bfloat16 times a number, and one or as many registers more, rounded once."""
    wgmma = plgpu.Layout.WGMMA
    result = plgpu.ShapeDtypeStruct(numbers.shape, numbers.dtype, layout=wgmma)
    arrays = (numbers,) if isinstance(addend, float) else (numbers, addend)

    @plgpu.inline_mgpu(arg_types=(wgmma,) * len(arrays), return_type=result)
    def fused(ctx: Any, numbers: Any, *more: Any) -> Any:
        del ctx
        i32 = ir.IntegerType.get_signless(32)
        out = np.empty(numbers.registers.shape, object)
        pair = numbers.registers.flat[0].type

        def bits(register: Any) -> Any:
            one = vector.bitcast(ir.VectorType.get((1,), i32), register)
            return vector.extract(one, [], [0])

        def constant(number: float) -> Any:
            half = int(np.float32(number).view(np.uint32)) >> 16
            made: Any = arith.constant  # its stubs are those of another constant
            return made(i32, ir.IntegerAttr.get(i32, half * 0x10001))

        for i, register in np.ndenumerate(numbers.registers):
            added = bits(more[0].registers[i]) if more else constant(addend)
            # As text: what MLIR has for it goes by way of float32.
            operands = [bits(register), constant(factor), added]
            made: Any = llvm.inline_asm(i32, operands, "fma.rn.bf16x2 $0, $1, $2, $3;", "=r,r,r,r")
            out[i] = vector.bitcast(pair, vector.broadcast(ir.VectorType.get((1,), i32), made))
        return mgpu.FragmentedArray(_registers=out, _layout=mgpu.WGMMA_LAYOUT, _is_signed=None)

    return fused(*arrays)
