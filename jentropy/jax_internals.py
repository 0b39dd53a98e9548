"""Every private or experimental piece of JAX that this project touches, but the API of Pallas.

Tried with jax 0.10.2, 0.11.2 and 0.12.0, to which `pyproject.toml` holds an installation; a test
holds that nothing else imports such a piece. Each is imported where it is used first, so that a
release that moved one breaks that alone:

    xla_metadata       the archive codec is slower on CPU (`one_kernel_mark`); so it is on releases
                       that were not tried, whose XLA might take the mark for something else
    mosaic, MLIR       kernels for Hopper fail: `default_backend` tries them first, says so and
                       takes the reference backend
    interpret.params   interpret mode of these kernels, which only tests run
    topologies         `pallas_kernels.profile`, and no other command
    multihost_utils    `models.load` over a mesh of several processes
    profiler           `benchmarks/hopper.py`, its part `kernels`

Kernels are written in `jax.experimental.pallas` and its `tpu` and `mosaic_gpu`, which they import
themselves: there is no kernel without them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np

OLDEST, UNTRIED = (0, 10, 2), (0, 13)  # releases from the first on, before the second
AT_REFERENCES = jax.__version_info__ >= (0, 11)  # Mosaic GPU loads and multiplies `ref.at[...]`
# libtpu 0.0.50 keeps up to three copies of what a loop carries, 0.0.42 one.
COPIES_OF_LOOPS = 3 if jax.__version_info__ >= (0, 12) else 1


def one_kernel_mark() -> AbstractContextManager[Any] | None:
    """What marks a call for XLA's CPU backend to be one kernel; None where it is not to be had.

    The mark is XLA's own and no interface.

    Returns:
      A context in which what is traced bears the mark.

    Example:
      >>> mark = one_kernel_mark()
      >>> mark is None or hasattr(mark, "__enter__")
      True
    """
    if not OLDEST <= jax.__version_info__ < UNTRIED:
        return None
    try:
        from jax.experimental.xla_metadata import set_xla_metadata
    except ImportError:
        return None
    return set_xla_metadata(xla_cpu_small_call="true", inlineable="false")


def described_device(**topology: Any) -> jax.Device:
    """A device that is not there, for the compiler of its platform.

    Args:
      topology: what `jax.experimental.topologies.get_topology_desc` takes.

    Returns:
      The first of its devices, to place abstract arguments on.
    """
    from jax.experimental import topologies

    return topologies.get_topology_desc(**topology).devices[0]


def described_mesh(shape: tuple[int, ...], names: tuple[str, ...], **topology: Any) -> Any:
    """A mesh of devices that are not there, as of `described_device`.

    Args:
      shape: of the mesh.
      names: of its axes.
      topology: what `jax.experimental.topologies.get_topology_desc` takes.
    """
    from jax.experimental import topologies

    described = topologies.get_topology_desc(**topology)
    return topologies.make_mesh(described, shape, names)


def exchanged(text: str) -> list[str]:
    """A text of every process of `jax.distributed`, in the order of the processes.

    Args:
      text: of this one; all processes call it.

    Example:
      >>> exchanged("of one process")
      ['of one process']
    """
    if jax.process_count() == 1:
        return [text]
    from jax.experimental import multihost_utils

    own = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(own.size)).reshape(-1)
    padded = np.pad(own, (0, int(sizes.max()) - own.size))
    gathered = np.asarray(multihost_utils.process_allgather(padded))
    return [row[:size].tobytes().decode() for row, size in zip(gathered, sizes, strict=True)]


def started_backends() -> list[str]:
    """Names of the backends that JAX has initialised.

    Example:
      >>> import jax
      >>> device = jax.devices()[0]
      >>> len(started_backends()) > 0
      True
    """
    from jax._src import xla_bridge

    return list(xla_bridge._backends)


def kernel_times(run: Callable[[], Any]) -> list[tuple[str, float]]:
    """Names and milliseconds of the GPU kernels of a call, as CUPTI gives them.

    Args:
      run: what is called.
    """
    from jax.experimental.mosaic.gpu import profiler

    return profiler.measure(run, aggregate=False)()[1] or []


def gpu_interpreter(**options: Any) -> Any:
    """`InterpretGPUParams`, which is not among the public names of jax 0.10."""
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

    return InterpretGPUParams(**options)


def wgmma_layout() -> Any:
    """Mosaic's description of how registers hold WGMMA's matrix A."""
    from jax.experimental.mosaic.gpu import fragmented_array

    return fragmented_array.WGMMA_LAYOUT


# Inside of kernels for Hopper, when they are compiled.


def load(ref: Any, index: tuple[Any, ...], layout: Any, **options: Any) -> Any:
    """Part of a reference, in registers of a layout."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    if AT_REFERENCES:
        return plgpu.load(ref.at[index], layout=layout, **options)
    return plgpu.load(ref, index, layout=layout, **options)


def store_transposed(ref: Any, numbers: Any) -> None:
    """Writes the transpose of an accumulator [columns, M] to a reference [M, columns].

    Eight threads write eight columns of a row: whole lines of 32 bytes, where they are float32.
    """
    from jax.experimental.mosaic.gpu import utils
    from jax.experimental.pallas import mosaic_gpu as plgpu
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import arith, memref, vector

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

    store(ref, numbers)


def as_wgmma(words: tuple[Any, ...], strided: Any, shape: tuple[int, int]) -> Any:
    """Registers of words as bfloat16 of WGMMA's matrix A: each is given another type, none moved.

    Args:
      words: uint32, four registers to a thread each.
      strided: their layout.
      shape: of the result.
    """
    from jax.experimental.mosaic.gpu import fragmented_array as mgpu
    from jax.experimental.pallas import mosaic_gpu as plgpu
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import vector

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
    from jax.experimental.mosaic.gpu import fragmented_array as mgpu
    from jax.experimental.pallas import mosaic_gpu as plgpu
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import vector

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
    from jax.experimental.mosaic.gpu import fragmented_array as mgpu
    from jax.experimental.pallas import mosaic_gpu as plgpu
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import arith, llvm, vector

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
            return arith.constant(i32, ir.IntegerAttr.get(i32, half * 0x10001))

        for i, register in np.ndenumerate(numbers.registers):
            added = bits(more[0].registers[i]) if more else constant(addend)
            # As text: what MLIR has for it goes by way of float32.
            operands = [bits(register), constant(factor), added]
            made = llvm.inline_asm(i32, operands, "fma.rn.bf16x2 $0, $1, $2, $3;", "=r,r,r,r")
            out[i] = vector.bitcast(pair, vector.broadcast(ir.VectorType.get((1,), i32), made))
        return mgpu.FragmentedArray(_registers=out, _layout=mgpu.WGMMA_LAYOUT, _is_signed=None)

    return fused(*arrays)
