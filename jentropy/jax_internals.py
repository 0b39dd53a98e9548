"""Every private or experimental piece of JAX that this project touches outside of its kernels.

Tried with jax 0.10.2, 0.11.2 and 0.12.0, to which `pyproject.toml` holds an installation; a test
holds that nothing else imports such a piece. Each is imported where it is used first, so that a
release that moved one breaks that alone:

    xla_metadata       the archive codec is slower on CPU (`one_kernel_mark`); so it is on releases
                       that were not tried, whose XLA might take the mark for something else
    interpret          interpret mode of these kernels, which only tests run
    topologies         `pallas_kernels.profile`, and no other command
    multihost_utils    `models.load` over a mesh of several processes, `save` of arrays over them
    distributed        processes that write one checkpoint together
    profiler           `benchmarks/hopper.py`, its part `kernels`
    layout             caches lie in memory as their axes do
    splash attention   long prompts on TPU; without it blocks of keys are multiplied by XLA
    cuDNN              the same on a GPU

Kernels are written in `jax.experimental.pallas` and its `tpu` and `mosaic_gpu`, which they import
themselves: there is no kernel without them. What those of Hopper need of Mosaic and MLIR stands in
`pallas_kernels.hopper.mosaic`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from threading import Lock
from typing import Any

import jax
import numpy as np

OLDEST, UNTRIED = (0, 10, 2), (0, 13)  # releases from the first on, before the second
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
