"""Every private or experimental piece of JAX that this project touches, but the API of Pallas.

Tried with jax 0.10.2, 0.11.2 and 0.12.0, to which `pyproject.toml` holds an installation; a test
holds that nothing else imports such a piece. Each is imported where it is used first, so that a
release that moved one breaks that alone:

    xla_metadata       the archive codec is slower on CPU (`one_kernel_mark`); so it is on releases
                       that were not tried, whose XLA might take the mark for something else
    mosaic, MLIR       kernels for Hopper fail: `default_backend` tries them first, says so and
                       takes the reference backend
    interpret          interpret mode of these kernels, which only tests run
    topologies         `pallas_kernels.profile`, and no other command
    multihost_utils    `models.load` over a mesh of several processes, `save` of arrays over them
    distributed        processes that write one checkpoint together
    profiler           `benchmarks/hopper.py`, its part `kernels`
    layout             caches lie in memory as their axes do
    splash attention   long prompts on TPU; without it blocks of keys are multiplied by XLA
    cuDNN              the same on a GPU

Kernels are written in `jax.experimental.pallas` and its `tpu` and `mosaic_gpu`, which they import
themselves: there is no kernel without them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Lock
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


def gathered(array: jax.Array) -> np.ndarray:
    """A whole array that lies over the processes of `jax.distributed`; all of them call it.

    Example:
      >>> import jax.numpy as jnp
      >>> gathered(jnp.arange(3)).tolist()
      [0, 1, 2]
    """
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def coordination_client() -> Any:
    """The client of the service that processes of `jax.distributed` meet by; None without one.

    Example:
      >>> coordination_client() is None
      True
    """
    from jax._src import distributed

    return distributed.global_state.client


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


@contextmanager
def gpu_interpreter_compiles_once() -> Iterator[None]:
    """Within, threads of interpreted kernels for GPUs share what the first of them compiled.

    By itself JAX 0.10 compiles the kernel in every warpgroup of every block of threads, JAX 0.12 in
    those of the first block: four fifths of what a small one takes.
    """
    from jax._src.pallas.mosaic.interpret import thread_map

    programs: dict[int, tuple[Any, Any]] = {}
    lock, original = Lock(), thread_map._run_jaxpr

    def run(jaxpr: Any, consts: Any, *args: Any) -> None:
        with lock:
            if id(jaxpr) not in programs:  # which is kept, so that no other gets its number
                of = jax.jit(functools.partial(jax.core.eval_jaxpr, jaxpr))
                programs[id(jaxpr)] = jaxpr, of.lower(consts, *args).compile()
        programs[id(jaxpr)][1](consts, *args)

    thread_map._run_jaxpr = run
    try:
        yield
    finally:
        thread_map._run_jaxpr = original


def wgmma_layout() -> Any:
    """Mosaic's description of how registers hold WGMMA's matrix A."""
    from jax.experimental.mosaic.gpu import fragmented_array

    return fragmented_array.WGMMA_LAYOUT


def as_it_lies(array: jax.Array) -> jax.Array:
    """The array, its last axis contiguous and so on: XLA for TPU might copy it to another order.

    JAX lets no program donate what it gives just so: what is given must have been changed since.

    Example:
      >>> as_it_lies(jax.numpy.ones((2, 3))).shape
      (2, 3)
    """
    from jax.experimental.layout import Layout, with_layout_constraint

    return with_layout_constraint(array, Layout(tuple(range(array.ndim))))


@functools.cache
def splash_attention() -> Callable[..., jax.Array] | None:
    """JAX's flash attention for TPU, told by arrays which blocks of keys to visit; None without.

    Its public constructors take masks that are known when a program is made. What they make is
    told to the kernel by `MaskInfo`, whose arrays may be computed.

    Returns:
      A function of q [heads, time, width], k and v [kv_heads, slots, width], `numbers` int32[time]
      and `keys` int32[parts of time, parts of slots] each, first the part of keys to read then,
      then 1 where that is to be added and else 0. `sees` is told the number of a query and the
      place of a key, `size` has the lengths of parts.
    """
    try:
        from jax.experimental.pallas.ops.tpu.splash_attention import (
            splash_attention_kernel as splash,
        )
        from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import (
            MaskInfo,
        )
    except ImportError:
        return None

    def attend(
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        numbers: jax.Array,
        keys: tuple[jax.Array, jax.Array],
        sinks: jax.Array | None,
        *,
        sees: Callable[[jax.Array, jax.Array], jax.Array],
        size: tuple[int, int],
        soft_cap: float | None,
        interpret: bool,
    ) -> jax.Array:
        kernel: Any = splash.SplashAttentionKernel(
            MaskInfo(
                data_next=keys[0][None],
                mask_next=None,
                block_mask=keys[1][None],
                partial_mask_blocks=None,
                q_sequence=numbers,  # type: ignore[arg-type]  # computed, as the others
            ),
            None,
            None,
            block_sizes=splash.BlockSizes(block_q=size[0], block_kv=size[1]),
            is_mqa=False,
            save_residuals=False,
            mask_value=splash.DEFAULT_MASK_VALUE,
            attn_logits_soft_cap=soft_cap,
            residual_checkpoint_name=None,
            mask_function=sees,
            interpret=interpret,
        )
        return kernel(q, k, v, sinks=sinks)

    return attend


def has_cudnn() -> bool:
    """Whether JAX can have attention computed by cuDNN.

    Example:
      >>> has_cudnn() in (True, False)
      True
    """
    try:
        from jax._src.cudnn import fused_attention_stablehlo as fused
    except ImportError:
        return False
    return getattr(fused, "cuda_versions", None) is not None


def cudnn_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array, scale: float
) -> jax.Array:
    """`jax.nn.dot_product_attention` by cuDNN, of arrays with heads before tokens.

    The public function takes tokens before heads, for which a cache would be copied.

    Args:
      q: [batch, heads, time, width].
      k, v: [batch, kv_heads, slots, width].
      seen: bool[batch, 1, time, slots].
      scale: of the products.
    """
    from jax._src.cudnn import fused_attention_stablehlo as fused

    return fused.dot_product_attention(q, k, v, mask=seen, scale=scale, qkv_layout="BNTH")


# Inside of kernels for Hopper, when they are compiled.


def load(ref: Any, index: tuple[Any, ...], layout: Any, **options: Any) -> Any:
    """Part of a reference, in registers of a layout."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

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
    from jax.experimental.mosaic.gpu import utils
    from jax.experimental.pallas import mosaic_gpu as plgpu
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import arith, memref, vector

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
    from jax.experimental.mosaic.gpu import utils
    from jax.experimental.pallas import mosaic_gpu as plgpu
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import vector

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), plgpu.Layout.WGMMA))
    def store(ctx: Any, target: Any, numbers: Any) -> None:
        del ctx
        index = ir.IndexType.get()
        for i, register in enumerate(numbers.registers.flat):
            vector.store(register, target, [utils.c(i, index), _thread(utils), utils.c(0, index)])

    store(ref, numbers)


def load_held(ref: Any, shape: tuple[int, ...]) -> Any:
    """Reads an accumulator of a shape that `store_held` wrote."""
    from jax.experimental.mosaic.gpu import fragmented_array as mgpu
    from jax.experimental.mosaic.gpu import utils
    from jax.experimental.pallas import mosaic_gpu as plgpu
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import vector

    made = plgpu.ShapeDtypeStruct(shape, np.dtype(np.float32), layout=plgpu.Layout.WGMMA)

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(),), return_type=made)
    def load(ctx: Any, source: Any) -> Any:
        del ctx
        index, pair = ir.IndexType.get(), ir.VectorType.get((2,), ir.F32Type.get())
        out = np.empty(mgpu.WGMMA_LAYOUT.registers_shape(shape), object)
        for i in range(out.size):
            at = [utils.c(i, index), _thread(utils), utils.c(0, index)]
            out.flat[i] = vector.load(pair, source, at)
        return mgpu.FragmentedArray(_registers=out, _layout=mgpu.WGMMA_LAYOUT, _is_signed=None)

    return load(ref)


def _thread(utils: Any) -> Any:
    """Of a warpgroup, as an index."""
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import arith

    inside = arith.andi(utils.thread_idx(), utils.c(127, ir.IntegerType.get_signless(32)))
    return arith.index_cast(ir.IndexType.get(), inside)


def wait_for_earlier_kernels() -> None:
    """Ends when all kernels before this one have ended, which may be launched before they have.

    Before jax 0.11.2 it never is, and nothing has to be waited for.
    """
    from jax.experimental.pallas import mosaic_gpu as plgpu

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
    from jax.experimental.mosaic.gpu import utils
    from jax.experimental.pallas import mosaic_gpu as plgpu
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import arith, memref

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(),))
    def clear(ctx: Any, counts: Any) -> None:
        del ctx
        i32 = ir.IntegerType.get_signless(32)
        lane = arith.andi(utils.thread_idx(), utils.c(31, i32))
        with utils.when(arith.cmpi(arith.CmpIPredicate.eq, lane, utils.c(0, i32))):
            memref.store(utils.c(0, i32), counts, [_warp(utils)])

    clear(counts)


def _warp(utils: Any) -> Any:
    """Of a warpgroup, as an index."""
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import arith

    i32 = ir.IntegerType.get_signless(32)
    warp = arith.shrui(utils.thread_idx(), utils.c(5, i32))
    return arith.index_cast(ir.IndexType.get(), arith.andi(warp, utils.c(3, i32)))


def _on_count(counts: Any, assembly: str) -> Any:
    """What assembly makes of the address of a warp's count."""
    from jax.experimental.mosaic.gpu import fragmented_array as mgpu
    from jax.experimental.mosaic.gpu import utils
    from jax.experimental.pallas import mosaic_gpu as plgpu
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import llvm

    made = plgpu.ShapeDtypeStruct((), np.dtype(np.int32), layout=plgpu.Layout.WG_SPLAT(()))

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(),), return_type=made)
    def run(ctx: Any, counts: Any) -> Any:
        del ctx
        i32 = ir.IntegerType.get_signless(32)
        one = utils.memref_slice(counts, (utils.ds(_warp(utils), 1),))
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
